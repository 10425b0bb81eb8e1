from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.parts.lora_pro import LoRAPro

NAMES = ["cat", "long_haired dog", "zebra"]
LABELS = torch.tensor([0, 1, 2, 1])


def pixels() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def attached(encoder: Encoder, method: CLIPLoRA) -> Any:
    """With every B moved off zero, so that the pairs do something."""
    learner = method.attach(Clip.of(encoder), NAMES, ["{} texture.", "other {}"])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            if name.endswith(".B"):
                parameter.normal_(std=0.3, generator=generator)
    return learner


def naive_attention(block: nn.Module, path: str, pairs: Any, s: float, x: Tensor, mask: Any) -> Any:
    """Explicit heads, from open_clip's packed weights; x (L, W)."""
    attention: Any = block.attn
    width, heads = x.shape[1], attention.num_heads
    parts = []
    for i, name in enumerate("qkv"):
        rows = slice(i * width, (i + 1) * width)
        y = linear(x, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
        A, B = (pairs[f"{path}.attn.{name}_proj.{factor}"] for factor in "AB")
        parts.append((y + s * x @ A.T @ B.T).view(len(x), heads, -1))
    mixed = []
    for h in range(heads):
        q, k, v = (part[:, h] for part in parts)
        scores = q @ k.T / q.shape[1] ** 0.5
        mixed.append((scores if mask is None else scores + mask).softmax(dim=1) @ v)
    return linear(torch.cat(mixed, 1), attention.out_proj.weight, attention.out_proj.bias)


def naive_tower(blocks: Any, prefix: str, pairs: Any, s: float, x: Tensor, mask: Any) -> Tensor:
    for i, block in enumerate(blocks):
        x = x + naive_attention(block, f"{prefix}.{i}", pairs, s, block.ln_1(x), mask)
        x = x + block.mlp(block.ln_2(x))
    return x


def naive_logits(encoder: Encoder, pairs: Any, template: str, s: float, scale: float) -> Tensor:
    """The paper's forward pass: 77 tokens, one prompt and one image at a time."""
    model: Any = encoder.model
    text = []
    for name in NAMES:
        tokens = encoder.tokenizer([template.format(name.replace("_", " "))])[0]
        x = model.token_embedding(tokens) + model.positional_embedding
        path = "transformer.resblocks"
        x = naive_tower(model.transformer.resblocks, path, pairs, s, x, model.attn_mask)
        text.append(model.ln_final(x)[int(tokens.argmax())] @ model.text_projection)
    images = []
    tower = model.visual
    for image in pixels():
        x = tower.conv1(image[None]).flatten(2)[0].T
        x = torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding
        path = "visual.transformer.resblocks"
        x = naive_tower(tower.transformer.resblocks, path, pairs, s, tower.ln_pre(x), None)
        images.append(tower.ln_post(x[0]) @ tower.proj)
    return scale * normalize(torch.stack(images)) @ normalize(torch.stack(text)).T


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize(("rank", "alpha"), [(2, 1.0), (3, 2.0)])
def test_loss_and_gradients_are_those_of_the_papers_forward_pass(
    encoder: Encoder, rank: int, alpha: float, chunk: int
) -> None:
    method = CLIPLoRA(rank=rank, alpha=alpha, dropout=0.0, text_chunk=chunk)
    learner = attached(encoder, method)
    theirs = {k: v.detach().clone().requires_grad_() for k, v in learner.parameters.items()}
    loss, logits = learner.loss(learner.images(pixels()), LABELS)
    loss.backward()
    expected = naive_logits(
        encoder, theirs, "a photo of a {}.", alpha / rank**0.5, learner.logit_scale
    )
    naive = cross_entropy(expected, LABELS)
    naive.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-5)
    for name, parameter in learner.parameters.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)


def test_before_training_it_is_zero_shot_clip(encoder: Encoder) -> None:
    learner: Any = CLIPLoRA().attach(Clip.of(encoder), NAMES, ["{} texture."])
    with torch.no_grad():
        torch.testing.assert_close(
            learner.images(pixels()), encoder.model.encode_image(pixels()), rtol=1e-5, atol=2e-6
        )
        tokens = encoder.tokenizer([f"a photo of a {n.replace('_', ' ')}." for n in NAMES])
        torch.testing.assert_close(
            learner.text(), encoder.model.encode_text(tokens), rtol=1e-5, atol=2e-6
        )


def test_dropout_acts_in_training_alone_and_spares_no_prompt(encoder: Encoder) -> None:
    learner = attached(encoder, CLIPLoRA(dropout=0.5))
    with torch.no_grad():
        rest = learner.text()
        assert torch.equal(learner.text(), rest)
        for module in learner.modules:
            module.train()
        assert not torch.allclose(learner.text(), rest)


@pytest.mark.parametrize("share", [False, True])
def test_what_is_dropped_of_the_first_words_is_shared_only_where_asked_for(
    encoder: Encoder, share: bool
) -> None:
    clip = Clip.of(encoder)
    learner = CLIPLoRA(dropout=0.5, share_prefix=share).attach(clip, ["cat"] * 2, [])
    for module in learner.modules:
        module.train()
    seen: list[int] = []
    query = clip.model.transformer.resblocks[0].attn.q_proj
    query.register_forward_hook(lambda module, given, y: seen.append(y.shape[-2]))
    learner.text()
    n_first, n_own = 7, 1  # the prompts are equal, but for their ends of text
    assert seen == [n_first + 2 * n_own if share else 2 * (n_first + n_own)]


@pytest.mark.parametrize(("towers", "has_images", "n"), [("text", False, 12), ("image", True, 12)])
def test_one_tower_alone_leaves_the_other_frozen(
    encoder: Encoder, towers: Any, has_images: bool, n: int
) -> None:
    learner = attached(encoder, CLIPLoRA(towers=towers))
    assert len(learner.parameters) == n  # 2 blocks x 3 matrices x 2 factors
    assert (learner.images is not None) == has_images
    features = learner.images(pixels()) if has_images else torch.ones(4, 16)
    learner.loss(features, LABELS)[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.parameters.values())


def test_the_dataset_s_own_template_takes_the_place_of_none(encoder: Encoder) -> None:
    learner = CLIPLoRA(template="").attach(Clip.of(encoder), NAMES, ["{} texture.", "x {}"])
    tokens = encoder.tokenizer([f"{n.replace('_', ' ')} texture." for n in NAMES])
    with torch.no_grad():
        torch.testing.assert_close(
            learner.text(), encoder.model.encode_text(tokens), rtol=1e-5, atol=2e-6
        )


def test_steps_grow_with_the_shots_and_nothing_else() -> None:
    assert [CLIPLoRA().plan(k, n).iterations for k, n in ((1, 5), (16, 5), (16, 500))] == [
        500, 8000, 8000,
    ]  # fmt: skip
    plan = CLIPLoRA().plan(1, 5)
    assert not plan.drop_last
    assert plan.schedule(0, 0.0) == pytest.approx(2e-4)
    assert plan.schedule(9, 1.0) == pytest.approx(1e-6)


def test_lora_pro_takes_the_pairs_with_their_scale(encoder: Encoder) -> None:
    method = CLIPLoRA(pro=True, rank=4)
    learner = attached(encoder, method)
    optimizer = method.optimizer(learner)
    assert isinstance(optimizer, LoRAPro)
    assert {s for group in optimizer.param_groups for s in group["scales"]} == {0.5}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 24


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "a photo"}, "template must have {} for the class name"),
        ({"iterations_per_shot": 0}, "must be a whole number, 1 or more"),
        ({"pro": True, "head": "trained", "towers": "image"}, "pro takes pairs alone"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CLIPLoRA(**settings)


def test_pairs_are_drawn_text_first_block_by_block_query_before_key(encoder: Encoder) -> None:
    parameters = CLIPLoRA(matrices="k,q").attach(Clip.of(encoder), NAMES, ["{}"]).parameters
    towers = ("transformer", "visual.transformer")
    paths = [f"{t}.resblocks.{i}.attn.{m}_proj" for t in towers for i in range(2) for m in "qk"]
    assert list(parameters) == [f"{path}.{factor}" for path in paths for factor in "AB"]
    generator = torch.Generator().manual_seed(1)
    for path in paths:
        bound = 64**-0.5 if path.startswith("visual") else 8**-0.5
        drawn = torch.empty_like(parameters[f"{path}.A"]).uniform_(
            -bound, bound, generator=generator
        )
        torch.testing.assert_close(parameters[f"{path}.A"].detach(), drawn)


def test_an_image_tower_s_class_has_one_prompt_too(encoder: Encoder) -> None:
    method = CLIPLoRA(towers="image", template="")
    one, both = (
        method.attach(Clip.of(encoder), NAMES, t).text() for t in (["{} a"], ["{} a", "b {}"])
    )
    assert torch.equal(one, both)


def test_a_template_with_other_braces_is_text_like_any_other(encoder: Encoder) -> None:
    for towers in ("both", "image"):
        method = CLIPLoRA(towers=towers, template="a {photo} of a {}.")
        tokens = encoder.tokenizer([f"a {{photo}} of a {n.replace('_', ' ')}." for n in NAMES])
        with torch.no_grad():
            text = normalize(method.attach(Clip.of(encoder), NAMES, ["{}"]).text(), dim=-1)
            expected = normalize(encoder.model.encode_text(tokens), dim=-1)
        torch.testing.assert_close(text, expected, rtol=1e-5, atol=2e-6)


def test_an_unknown_matrix_is_refused_by_name(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="unknown matrix 'w'"):
        CLIPLoRA(matrices="q,w").attach(Clip.of(encoder), NAMES, ["{}"])

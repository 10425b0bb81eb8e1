from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, multi_head_attention_forward, normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.plot import PLOT
from fewshot.endtoend.parts.transport import similarity, transport_plan
from tests.image_peft import LABELS, NAMES, TEMPLATES, attend, feed, pixels
from tests.naive_prompts import text_around
from tests.naive_transport import naive_plans
from tests.toys import vectors


@pytest.fixture(scope="module")
def vit(random_vit: Path) -> Encoder:
    return load(f"local-dir:{random_vit}", device="cpu")


def test_each_image_has_the_plans_of_the_loop_for_it_alone() -> None:
    cosines = torch.einsum("bmd,ncd->bcmn", vectors(0, 3, 5, 4), vectors(1, 2, 6, 4))
    cosines[1] *= 0.2  # which stops at another step
    expected = torch.stack([torch.stack(naive_plans(one)) for one in cosines])
    torch.testing.assert_close(transport_plan(cosines), expected, rtol=1e-4, atol=1e-6)
    apart = torch.cat([transport_plan(cosines[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(transport_plan(cosines), apart)


def test_a_plan_moves_equal_shares_of_regions_to_equal_shares_of_prompts() -> None:
    plan = transport_plan(0.3 * torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(plan.sum(dim=2), torch.full((2, 3, 4), 0.25))
    torch.testing.assert_close(plan.sum(dim=3), torch.full((2, 3, 7), 1 / 7), rtol=0.02, atol=0)


def test_of_one_prompt_and_one_region_it_is_the_cosine() -> None:
    images, text = vectors(0, 3, 1, 8), vectors(1, 1, 5, 8)
    expected = images[:, 0] @ text[0].T
    torch.testing.assert_close(similarity(4 * images, 0.2 * text), expected)


def of_vit(model: Any, image: Tensor) -> Tensor:
    """(M, D): the patches of one image, each as if it were the class token."""
    tower = model.visual
    x = tower.conv1(image[None]).flatten(2)[0].T
    x = tower.ln_pre(torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding)
    for block in tower.transformer.resblocks:
        x = x + attend(block, block.ln_1(x))
        x = x + feed(block, x)
    return tower.ln_post(x[1:]) @ tower.proj  # type: ignore[no-any-return]


def of_resnet(model: Any, image: Tensor) -> Tensor:
    """(M, D): the attention pool of CLIP's code, which computes every query."""
    tower, pool = model.visual, model.visual.attnpool
    x = tower.stem(image[None])
    for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        x = stage(x)
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(dim=0, keepdim=True), x]) + pool.positional_embedding[:, None]
    parts = (pool.q_proj, pool.k_proj, pool.v_proj)
    x, _ = multi_head_attention_forward(
        x, x, x, x.shape[-1], pool.num_heads, None, torch.cat([part.bias for part in parts]),
        None, None, False, 0.0, pool.c_proj.weight, pool.c_proj.bias, need_weights=False,
        use_separate_proj_weight=True,
        **{f"{name}_proj_weight": part.weight for name, part in zip("qkv", parts, strict=True)},
    )  # fmt: skip
    return x[1:, 0]


@pytest.mark.parametrize(("kind", "chunk"), [("vit", 0), ("resnet", 2)])
def test_loss_and_gradients_are_those_of_the_published_code_on_77_tokens(
    kind: str, chunk: int, request: pytest.FixtureRequest
) -> None:
    encoder: Encoder = request.getfixturevalue(kind)
    model: Any = encoder.model
    learner: Any = PLOT(n_prompts=3, n_ctx=5, text_chunk=chunk).attach(
        Clip.of(encoder), NAMES, TEMPLATES
    )
    theirs = {k: v.detach().clone().requires_grad_() for k, v in learner.parameters.items()}
    assert len(theirs) == 3
    loss, logits = learner.loss(learner.images(pixels()), LABELS)
    loss.backward()

    text = torch.stack([text_around(encoder, one, NAMES) for one in theirs.values()])  # (N, C, D)
    rows = []
    for image in pixels():
        with torch.no_grad():
            parts = normalize((of_vit if kind == "vit" else of_resnet)(model, image), dim=1)
        cosines = torch.stack([parts @ text[:, k].T for k in range(len(NAMES))])
        plans = naive_plans(cosines.detach())
        rows.append(torch.stack([(p * s).sum() for p, s in zip(plans, cosines, strict=True)]))
    expected = learner.logit_scale * torch.stack(rows)
    naive = cross_entropy(expected, LABELS)
    naive.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loss, naive, rtol=1e-4, atol=1e-4)
    for name, parameter in learner.parameters.items():
        assert parameter.grad.abs().max() > 1e-4
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


def test_text_is_encoded_once_where_a_learner_is_frozen(vit: Encoder) -> None:
    learner: Any = PLOT(n_prompts=2, n_ctx=3).attach(Clip.of(vit), NAMES, TEMPLATES)
    features = learner.images(pixels())
    with torch.no_grad():
        fixed, logits = learner.frozen(), learner.logits(features)
        for context in learner.parameters.values():
            context.zero_()
        assert not torch.allclose(learner.logits(features), logits, atol=1e-3)
        torch.testing.assert_close(fixed.logits(features), logits)


def test_contexts_differ_from_one_another_and_by_seed(vit: Encoder) -> None:
    first, other = (
        torch.stack(list(PLOT(seed=seed).attach(Clip.of(vit), NAMES, []).parameters.values()))
        for seed in (1, 2)
    )
    assert first.shape[:2] == (4, 16)
    assert len({float(x) for x in torch.cat([first, other])[:, 0, 0].detach()}) == 8
    assert 0.01 < float(first.detach().std()) < 0.03


def test_the_recipe_is_the_authors() -> None:
    plan = PLOT().plan(16, 752)
    assert (plan.iterations, plan.batch_size, plan.drop_last) == (50 * 23, 32, True)


@pytest.mark.parametrize("settings", [{"n_prompts": 0}, {"n_ctx": 0}, {"lr": 0.0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        PLOT(**settings)

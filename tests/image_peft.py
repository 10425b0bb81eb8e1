"""What every method that changes the image tower has to satisfy, and a ViT-B/16 without weights."""

import functools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.models.encoder import Encoder
from fewshot.endtoend.attention import unfuse
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.parts.peft import PEFTMethod

NAMES = ["cat", "long_haired dog", "zebra"]
LABELS = torch.tensor([0, 1, 2, 1])
TEMPLATES = ["{} texture.", "a {}"]

Parameters = Mapping[str, Tensor]
Naive = Callable[[Any, Parameters, Tensor], Tensor]  # open_clip's model, parameters, one image


def pixels(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ids(value: object) -> str | None:
    if not isinstance(value, PEFTMethod):
        return None
    return value.name + ("-tk" if getattr(value, "tucker", False) else "")


def with_(method: PEFTMethod, **values: Any) -> Any:
    return type(method)(**{**vars(method), **values})


def move(parameters: Mapping[str, Tensor], by: float = 0.1) -> None:
    """All that is trained off its start, so that it does something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def attached(encoder: Encoder, method: PEFTMethod, *, moved: float = 0.0) -> tuple[Clip, Learner]:
    """The learner, with every parameter moved by normal noise of that deviation."""
    clip = Clip.of(encoder)
    learner = method.attach(clip, NAMES, TEMPLATES)
    move(learner.parameters, moved)
    return clip, learner


def assert_starts_as_zero_shot(encoder: Encoder, method: PEFTMethod) -> None:
    _, learner = attached(encoder, method)
    assert learner.images is not None
    with torch.no_grad():
        torch.testing.assert_close(
            learner.images(pixels()), encoder.model.encode_image(pixels()), rtol=1e-5, atol=2e-6
        )


def assert_learns_as(
    encoder: Encoder, method: PEFTMethod, naive: Naive, moved: float = 0.2
) -> None:
    """Features, loss and gradients are those of a re-statement, one image at a time."""
    _, learner = attached(encoder, method, moved=moved)
    assert learner.images is not None
    theirs = {k: v.detach().clone().requires_grad_() for k, v in learner.parameters.items()}
    ours = learner.images(pixels())
    loss, _ = learner.loss(ours, LABELS)
    loss.backward()  # type: ignore[no-untyped-call]
    features = torch.stack([naive(encoder.model, theirs, image) for image in pixels()])
    torch.testing.assert_close(ours, features, rtol=1e-4, atol=1e-5)
    text = normalize(learner.text().detach(), dim=1)
    expected = cross_entropy(learner.logit_scale * normalize(features, dim=1) @ text.T, LABELS)
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, parameter in learner.parameters.items():
        assert theirs[name].grad is not None
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


def assert_trains_what_it_declares(encoder: Encoder, method: PEFTMethod) -> None:
    clip, learner = attached(encoder, method, moved=0.2)
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    assert learner.images is not None
    for module in learner.modules:
        module.train()
    learner.loss(learner.images(pixels()), LABELS)[0].backward()  # type: ignore[no-untyped-call]
    declared = {id(parameter) for parameter in learner.parameters.values()}
    assert len(declared) == len(learner.parameters)
    for name, parameter in learner.parameters.items():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    for name, parameter in clip.model.named_parameters():
        assert parameter.requires_grad == (id(parameter) in declared), name
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, before[name])


@functools.cache
def _vit_b16() -> Any:
    import open_clip

    text: Any = {"context_length": 77, "vocab_size": 9, "width": 8, "heads": 2, "layers": 1}
    vision: Any = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}
    with torch.device("meta"):
        return open_clip.CLIP(512, vision, text)


def parameters_on_vit_b16(method: PEFTMethod) -> dict[str, Any]:
    """What the method trains in the image tower of CLIP's ViT-B/16."""
    import copy

    model = copy.deepcopy(_vit_b16())
    unfuse(model)
    model.requires_grad_(False)
    nothing: Any = None
    preprocess: Any = SimpleNamespace(size=224)
    clip = Clip(model, nothing, preprocess, torch.device("meta"), "fp32", 100.0, {"dim": 512})
    parameters, _ = method.insert(clip)
    return dict(parameters)


def count_on_vit_b16(method: PEFTMethod) -> int:
    return sum(parameter.numel() for parameter in parameters_on_vit_b16(method).values())


def naive_tokens(model: Any, image: Tensor) -> Tensor:
    """(L, W): one image behind the first layer norm of open_clip's tower."""
    tower = model.visual
    x = tower.conv1(image[None]).flatten(2)[0].T
    x = torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding
    tokens: Tensor = tower.ln_pre(x)
    return tokens


def naive_feature(model: Any, tokens: Tensor) -> Tensor:
    """(D,): of the (L, W) tokens behind the last block."""
    feature: Tensor = model.visual.ln_post(tokens[0]) @ model.visual.proj
    return feature


def feed(block: Any, tokens: Tensor) -> Tensor:
    """The block's layer norm and MLP of (L, W) tokens."""
    out: Tensor = block.mlp(block.ln_2(tokens))
    return out


def attend(block: Any, tokens: Tensor) -> Tensor:
    """open_clip's own attention of (L, W) normalized tokens."""
    out: Tensor = block.attn(tokens, tokens, tokens, need_weights=False)[0]
    return out

"""Two techniques in one model: both act, or the second is refused."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.encoder import Encoder
from cache.errors import UserError
from cache.loading import load
from fewshot.endtoend.attention import fuse
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods import configure
from fewshot.endtoend.parts.weight_delta import fold

NAMES = ["cat", "long_haired dog", "zebra"]
SETTINGS: dict[str, dict[str, str]] = {
    "clip-lora": {"towers": "image", "dropout": "0"},
    "full-delta": {},
    "ssf": {},
    "repadapter": {"dim": "4", "dropout": "0"},
    "bitfit": {},
    "adaptformer": {"dim": "4", "dropout": "0"},
    "inner-clip-adapter": {},
    "patt": {"dim": "4"},
    "prefix": {"n_tokens": "2"},
    "vpt-deep": {"n_tokens": "2"},
    "lst": {},
    "vqt": {"dropout": "0"},
    "visual-prompt": {"pad": "4"},
}
WEIGHTS = ["clip-lora", "full-delta", "ssf", "repadapter", "bitfit"]
OTHER_FUNCTION = {"inner-clip-adapter", "prefix", "vpt-deep", "visual-prompt"}  # than CLIP's
REFUSED = {
    *((weights, weights) for weights in ("clip-lora", "full-delta", "ssf", "repadapter")),
    ("clip-lora", "full-delta"), ("full-delta", "clip-lora"),  # the same matrices
    ("ssf", "clip-lora"), ("ssf", "full-delta"), ("ssf", "repadapter"),
    *((first, "ssf") for first in SETTINGS if first != "visual-prompt"),  # it scales CLIP's own
    *product(("patt", "prefix"), ("clip-lora", "full-delta")),  # their q, k or v is no matrix now
    ("prefix", "patt"),
    *product(("adaptformer", "inner-clip-adapter"), repeat=2),
    *product(("vpt-deep", "lst", "vqt"), repeat=2),
    *(("vqt", second) for second in SETTINGS),
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(random_vit: Path) -> Encoder:
    return load(f"local-dir:{random_vit}", device="cpu")


def pixels() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def attached(name: str, clip: Clip) -> Any:
    return configure(name, SETTINGS[name], seed=1).attach(clip, NAMES, ["a photo of a {}."])


def move(learner: Any, seed: int) -> None:
    """All that is trained off its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(("first", "second"), list(product(SETTINGS, repeat=2)))
def test_of_two_techniques_both_act_or_the_second_is_refused(
    encoder: Encoder, first: str, second: str
) -> None:
    clip = Clip.of(encoder)
    one = attached(first, clip)
    move(one, 1)
    with torch.no_grad():
        alone = clip.model.encode_image(pixels())
    if (first, second) in REFUSED:
        with pytest.raises(UserError, match="attach"):
            attached(second, clip)
        return
    two = attached(second, clip)
    if second not in OTHER_FUNCTION:
        with torch.no_grad():
            both = clip.model.encode_image(pixels())
        torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-4)
    move(two, 2)
    logits = two.logits(two.images(pixels()))
    (logits * torch.randn(4, 3, generator=torch.Generator().manual_seed(3))).sum().backward()
    for name, parameter in [*one.parameters.items(), *two.parameters.items()]:
        assert parameter.grad is not None, name
        # A key's bias adds the same to every logit of its query, which softmax does not see.
        assert parameter.grad.any() or "k_proj" in name, name


@pytest.mark.parametrize(("first", "second"), sorted(set(product(WEIGHTS, repeat=2)) - REFUSED))
def test_two_updates_of_weights_fold_together(encoder: Encoder, first: str, second: str) -> None:
    clip = Clip.of(encoder)
    move(attached(first, clip), 1)
    move(attached(second, clip), 2)
    with torch.no_grad():
        before = clip.model.encode_image(pixels())
        fold(clip.model)
        fuse(clip.model)
        torch.testing.assert_close(clip.model.encode_image(pixels()), before, rtol=1e-4, atol=1e-4)

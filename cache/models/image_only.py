"""Image towers without a text tower, by timm's names: DINOv2, DINOv3 and the rest.

The feature is what the model's own head would see: pooled and normalized as timm has it for the
weights (`forward_head(..., pre_logits=True)`), before any classifier.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from cache.errors import UserError, unknown
from cache.location import IMAGE_ONLY
from cache.models.weights_file import put_weights, read_weights

RESIZE_MODES = {"center": "shortest", "squash": "squash"}  # timm's word, open_clip's word
LOGIT_SCALE = 100.0  # CLIP's, which methods on images alone use for their cosines


class ImageOnly(nn.Module):
    """A timm model as the image half of a CLIP.

    Attributes:
        visual: timm's module without its classifier, with open_clip's `preprocess_cfg`.
        logit_scale: As CLIP has it, a logarithm.
        dim: D.
    """

    def __init__(self, visual: Any, name: str) -> None:
        super().__init__()
        self.visual = visual
        self.visual.preprocess_cfg = _preprocessing(visual, name)
        self.logit_scale = torch.tensor(math.log(LOGIT_SCALE))
        self.dim = int(getattr(visual, "head_hidden_size", None) or visual.num_features)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return features (B, D) of pixels (B, 3, H, W)."""
        visual: Any = self.visual
        features: Tensor = visual.forward_head(visual.forward_features(pixels), pre_logits=True)
        return features


def create(name: str, file: Path | None) -> ImageOnly:
    """The model of a name such as `timm:vit_small_patch14_dinov2.lvd142m`.

    Args:
        name: `timm:` and a name of timm's.
        file: The weights; fetched from the hub without it.

    Raises:
        UserError: timm has no such model, or the file holds other weights.
    """
    import timm

    plain = name.removeprefix(IMAGE_ONLY)
    known = timm.list_pretrained() if file is None else timm.list_models()
    if not _is_known(plain, known, file):
        raise unknown("model of timm", plain, known)
    trunk: Any = timm.create_model(plain, pretrained=file is None, num_classes=0)
    if file is not None:
        heads = trunk.default_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else heads
        own = trunk.state_dict().keys()
        weights = {
            key: tensor
            for key, tensor in read_weights(file).items()
            if key in own or not key.startswith(tuple(f"{head}." for head in heads))
        }
        put_weights(trunk, weights, f"{name}@{file}")
    return ImageOnly(trunk, name)


def no_text(name: str) -> Callable[[list[str]], NoReturn]:
    """A tokenizer of a model without a text tower: it refuses."""

    def refuse(prompts: list[str], context_length: int | None = None) -> NoReturn:
        raise UserError(
            f"{name} encodes images alone and reads no text; use a method that needs none, such as "
            "nearest-mean, gda or linear-probe, or a model of open_clip"
        )

    return refuse


def _is_known(plain: str, known: list[str], file: Path | None) -> bool:
    import timm

    arch, _, tag = plain.partition(".")
    if file is None:  # without a tag, timm takes the first
        return plain in known or (not tag and timm.models.is_model_pretrained(arch))
    return arch in known


def _preprocessing(visual: Any, name: str) -> dict[str, Any]:
    """Timm's data config in open_clip's words."""
    import timm

    data: Any = timm.data
    config = data.resolve_model_data_config(visual)
    channels, height, width = config["input_size"]
    mode = RESIZE_MODES.get(config["crop_mode"])
    if channels != 3 or height != width or mode is None:
        raise UserError(
            f"{name} takes images of {channels} x {height} x {width}, cropped by "
            f"{config['crop_mode']!r}; only square color images, cropped by 'center' or 'squash', "
            "are encoded; choose another model"
        )
    return {
        "size": height,
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": config["interpolation"],
        "resize_mode": mode,
        "fill_color": 0,
        "crop_pct": config["crop_pct"],
    }

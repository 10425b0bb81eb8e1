"""Small members of the families of towers that came after CLIP's, with random weights."""

import functools
from typing import Any

import open_clip
import timm
import torch
from torch import Tensor

from cache.models.encoder import Encoder, wrap

PREPROCESSING: dict[str, Any] = {
    "size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic",
    "resize_mode": "shortest", "fill_color": 0,
}  # fmt: skip
SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 2}
TRUNKS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"qk_norm": True, "init_values": 0.1},
    "vit_base_patch16_siglip_224": {},
    "vit_small_patch14_dinov2": {"img_size": 28},
    "eva02_base_patch16_clip_224": {},
    "eva_giant_patch14_224": {"img_size": 28, "mlp_ratio": 2},
    "vit_small_patch16_dinov3": {},
    "vit_pe_core_tiny_patch16_384": {},
}


def moved(model: Any) -> Any:
    """The model with noise on every weight, so that none is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def trunk(name: str) -> Any:
    return moved(timm.create_model(name, num_classes=0, **SMALL | TRUNKS[name]))


def words(prompts: list[str]) -> Tensor:
    """A token for each word, without start; padding ends the text, as SigLIP has it."""
    rows = torch.ones(len(prompts), 12, dtype=torch.int64)
    for row, prompt in zip(rows, prompts, strict=True):
        for i, word in enumerate(prompt.replace(".", "").split()):
            row[i] = 2 + sum(map(ord, word)) % 900
    return rows


SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "vocab_size": 1000}


@functools.cache
def coca() -> Encoder:
    """A small CoCa, whose text has a class token and whose towers give tokens beside features."""
    both: Any = {"context_length": 12, "width": 8, "heads": 2, "layers": 2, "vocab_size": 49408}
    text = both | {"embed_cls": True, "output_tokens": True}
    vision: Any = {
        "image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "attentional_pool": True,
        "attn_pooler_heads": 2, "output_tokens": True,
    }  # fmt: skip
    model = moved(open_clip.CoCa(16, both, text, vision))
    model.visual.preprocess_cfg = PREPROCESSING
    tokenizer: Any = open_clip.SimpleTokenizer(context_length=12)
    return wrap(model, tokenizer, torch.device("cpu"), name="small", arch="small")


def two_towers(name: str, **text: Any) -> Encoder:
    """CustomTextCLIP with a small trunk of timm's."""
    plain: dict[str, Any] = {"context_length": 12, "width": 8, "heads": 2, "layers": 1}
    vision = {"timm_model_name": "test_vit", "image_size": 160}
    model: Any = open_clip.CustomTextCLIP(16, vision, plain | text)
    model.visual.trunk, size = trunk(name), SMALL["img_size"]
    model.visual.preprocess_cfg = PREPROCESSING | {"size": size}
    tokenizer: Any = words if "vocab_size" in text else open_clip.SimpleTokenizer(context_length=12)
    return wrap(moved(model), tokenizer, torch.device("cpu"), name="small", arch="small")

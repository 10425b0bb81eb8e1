"""What works on which family of backbones: one small member each, with random weights.

    python benchmarks/backbones.py

Native towers are cut to one block, which changes nothing that is asked here. Tokens are random of
the model's own length, so that no tokenizer is fetched. Of a trained method, the cell says if it
finds its place in the model and gives finite text. Prints the table of docs/guide/backbones.md.
"""

import logging
from collections.abc import Callable
from typing import Any

import open_clip
import timm
import torch
from torch import Tensor

from cache.encoder import Encoder, wrap
from cache.errors import UserError
from cache.image_only import ImageOnly, no_text
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods import METHODS

FAMILIES = {
    "OpenAI, LAION, DFN": "ViT-B-32",
    "ResNet": "RN50",
    "CLIPA": "ViT-L-14-CLIPA",
    "SigLIP": "ViT-B-16-SigLIP",
    "SigLIP 2": "ViT-B-32-SigLIP2-256",
    "EVA02": "EVA02-B-16",
    "PE-Core": "PE-Core-T-16-384",
    "MobileCLIP2": "MobileCLIP2-S0",
    "ViTamin": "ViTamin-S",
    "ConvNeXt": "convnext_base",
    "CoCa": "coca_ViT-B-32",
    "MetaCLIP 2": "ViT-L-14-worldwide",
    "DINOv2": "timm:vit_small_patch14_dinov2",
    "DINOv3": "timm:vit_small_patch16_dinov3",
}
TRAINED = ("coop", "clip-lora", "visual-prompt")
NAMES, TEMPLATES = ("cat", "dog"), ("a photo of a {}.",)


def build(name: str) -> Encoder:
    """The encoder of one member."""
    cpu = torch.device("cpu")
    if name.startswith("timm:"):
        trunk = timm.create_model(name.removeprefix("timm:"), num_classes=0)
        return wrap(ImageOnly(trunk, name), no_text(name), cpu, name=name, arch=name)
    config: dict[str, Any] = open_clip.get_model_config(name)
    text, vision = config["text_cfg"] | {"layers": 1}, config["vision_cfg"]
    if isinstance(vision.get("layers"), int):
        vision = vision | {"layers": 1}
    model = open_clip.create_model(name, text_cfg=text, vision_cfg=vision)
    simple: Callable[[list[str]], Tensor] = open_clip.SimpleTokenizer(
        context_length=text["context_length"]
    )

    def tokens(prompts: list[str], context_length: int | None = None) -> Tensor:
        if "hf_tokenizer_name" not in text:
            return simple(prompts)
        shape = (len(prompts), text["context_length"])
        return torch.randint(3, 1000, shape, generator=torch.Generator().manual_seed(0))

    return wrap(model, tokens, cpu, name=name, arch=name)


@torch.no_grad()
def row(name: str) -> list[str]:
    """The cells of one member."""
    encoder = build(name)
    size = encoder.preprocess.size
    images = encoder.encode_images(torch.randn(2, 3, size, size))
    cells = ["yes" if images.isfinite().all() and images.shape == (2, encoder.dim) else "no"]
    cells.append("none")
    if encoder.reads_text:
        cells[1] = "yes" if encoder.encode_text(["a dog"]).isfinite().all() else "no"
    for method in TRAINED:
        try:
            learner = METHODS[method]().attach(Clip.of(encoder), NAMES, TEMPLATES)
            cells.append("yes" if learner.text().isfinite().all() else "no")
        except UserError:
            cells.append("no")
    return cells


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # open_clip's, that weights are random
    print("| family | tried on | images | text |", " | ".join(f"`{m}`" for m in TRAINED), "|")
    print("|", " | ".join(["---"] * (4 + len(TRAINED))), "|")
    for family, member in FAMILIES.items():
        print("|", " | ".join([family, f"`{member}`", *row(member)]), "|", flush=True)

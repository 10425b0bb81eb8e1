"""What works on which family of backbones: one small member each, with random weights.

    python -m benchmarks.backbones [FAMILY ...]

Towers that are a row of blocks are cut to one block, which changes nothing that is asked here.
Where a tokenizer would be fetched, each word has one token. Of a trained method, the cell says if
it finds its place in the model and gives finite text; what a refusal says stands below. The last
columns are of `export`: an update of matrices folded into the model's own weights, and an ONNX
file that computes what the model does. Prints the table of docs/guide/backbones.md, or the rows of
the named families.
"""

import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import Tensor, nn

from cache.errors import UserError
from cache.models.encoder import Encoder, wrap
from cache.models.image_only import ImageOnly, no_text
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.export.folding import folded
from fewshot.adapters.export.onnx_file import write_onnx
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods import METHODS
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.live_linear_probe import LiveLinearProbe
from fewshot.model_selection.calibration import Calibration

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
GATES: dict[str, tuple[str, dict[str, Any]]] = {
    "`coop`": ("coop", {"n_ctx": 4}),
    "`clip-lora`": ("clip-lora", {"towers": "image"}),
    "`adaptformer`": ("adaptformer", {}),
    "`vpt-deep`": ("vpt-deep", {}),
    "`visual-prompt`": ("visual-prompt", {}),
    "`ln-tune`": ("ln-tune", {}),
}
NAMES, TEMPLATES = ("cat", "dog"), ("a photo of a {}.",)


def build(name: str) -> Encoder:
    """The encoder of one member."""
    cpu = torch.device("cpu")
    if name.startswith("timm:"):
        trunk = cut(timm.create_model(name.removeprefix("timm:"), num_classes=0))
        return wrap(ImageOnly(trunk, name), no_text(name), cpu, name=name, arch=name)
    config: dict[str, Any] = open_clip.get_model_config(name)
    text, vision = config["text_cfg"] | {"layers": 1}, config["vision_cfg"]
    if isinstance(vision.get("layers"), int):
        vision = vision | {"layers": 1}
    model = open_clip.create_model(name, text_cfg=text, vision_cfg=vision)
    cut(getattr(model.visual, "trunk", None))
    simple: Callable[[list[str]], Tensor] = open_clip.SimpleTokenizer(
        context_length=text["context_length"]
    )

    def tokens(prompts: list[str], context_length: int | None = None) -> Tensor:
        if "hf_tokenizer_name" not in text:
            return simple(prompts)
        rows = torch.zeros(len(prompts), text["context_length"], dtype=torch.int64)
        for row, prompt in zip(rows, prompts, strict=True):
            words = prompt.replace(".", "").split()
            ids = [3 + sum(map(ord, word)) % 900 for word in words] + [text.get("eos_id", 1)]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    return wrap(model, tokens, cpu, name=name, arch=name)


def cut(trunk: Any) -> Any:
    """The image tower of timm's with its first block alone, in place, where it has such a row."""
    if isinstance(getattr(trunk, "blocks", None), nn.Sequential | nn.ModuleList):
        trunk.blocks = trunk.blocks[:1]
    return trunk


@torch.no_grad()
def row(name: str, refused: dict[str, list[str]]) -> list[str]:
    """The cells of one member; adds to `refused` what each refusal says, and of whom."""
    encoder = build(name)
    size = encoder.preprocess.size
    images = encoder.encode_images(torch.randn(2, 3, size, size))
    cells = ["yes" if images.isfinite().all() and images.shape == (2, encoder.dim) else "no"]
    cells.append("none")
    if encoder.reads_text:
        cells[1] = "yes" if encoder.encode_text(["a dog"]).isfinite().all() else "no"
    for name_of, settings in GATES.values():
        head = {} if encoder.reads_text or name_of == "coop" else {"head": "trained"}
        method = METHODS[name_of](**settings, **head)
        try:
            learner = method.attach(Clip.of(encoder), NAMES, TEMPLATES)
            cells.append("yes" if learner.text().isfinite().all() else "no")
        except UserError as error:
            cells.append("no")
            refused.setdefault(str(error), []).append(f"{name}, {name_of}")
    for target, export in (("open_clip", fold), ("onnx", to_onnx)):
        try:
            export(encoder)
            cells.append("yes")
        except UserError as error:
            cells.append("no")
            refused.setdefault(str(error), []).append(f"{name}, export to {target}")
    return cells


def fold(encoder: Encoder) -> None:
    """Raise unless an update of matrices becomes weights that open_clip has a place for."""
    if not encoder.reads_text:
        raise UserError("open_clip opens models of two towers, and this encodes images alone")
    clip = Clip.of(encoder)
    CLIPLoRA(towers="image").attach(clip, NAMES, TEMPLATES)
    new = folded(clip.model).state_dict().keys() ^ encoder.model.state_dict().keys()
    if new:
        raise UserError(f"open_clip has no place for {sorted(new)[0]}")


def to_onnx(encoder: Encoder) -> None:
    """Raise unless the model and a classifier become a file that computes what they do."""
    method = LiveLinearProbe()
    learner = method.attach(Clip.of(encoder), NAMES, TEMPLATES)
    adapter = Adapter(
        method.name, asdict(method), dict(encoder.identity), encoder.preprocess.identity(), "fp32",
        NAMES, (), TEMPLATES, {}, Calibration(1.0, 0, "none"), None, learner.state(),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(adapter, encoder, Path(folder))


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # open_clip's, that weights are random
    refused: dict[str, list[str]] = {}
    print("| family | tried on | images | text |", " | ".join(GATES), "| to open_clip | to ONNX |")
    print("|", " | ".join(["---"] * (6 + len(GATES))), "|")
    for family in sys.argv[1:] or FAMILIES:
        member = FAMILIES[family]
        cells = row(member, refused)
        print("|", " | ".join([family, f"`{member}`", *cells]), "|", flush=True)
    for why, pairs in refused.items():
        print(f"\n{'; '.join(pairs)}: {why}")

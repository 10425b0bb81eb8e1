"""A folder with the file that CLIP-LoRA's own code loads."""

from pathlib import Path

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.clip_lora_file import depths_of, write_clip_lora
from fewshot.adapters.same_model import require_model
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.endtoend.methods.clip_lora import CLIPLoRA

FILE = "lora_weights.pt"


def require_pairs(adapter: Adapter) -> None:
    """Raise UserError unless pairs are all that the adapter learned."""
    if adapter.method != CLIPLoRA.name or "head" in adapter.tensors:
        what = "a trained head" if adapter.method == CLIPLoRA.name else adapter.method
        unfoldable = adapter.method in TRAINED and TRAINED[adapter.method].unfoldable
        raise UserError(
            f"files of LoRA pairs hold what clip-lora learns in the towers, and not {what}; "
            f"use {'--to onnx' if unfoldable else '--to open_clip or --to onnx'}"
        )


def write_clip_lora_folder(adapter: Adapter, encoder: Encoder, folder: Path) -> str:
    """Write the file into a folder; how to run it, in Markdown.

    Args:
        adapter: One that `require_pairs` lets pass.
        encoder: Its model.
        folder: There already.

    Raises:
        UserError: The model is another, or what was trained has no place in such a file.
    """
    require_model(adapter.model, encoder.identity)
    method, depths = CLIPLoRA(**adapter.settings), depths_of(encoder.model)
    about = write_clip_lora(folder / FILE, method, adapter.tensors, depths)
    arguments = " ".join(
        f"--{name} {' '.join(value) if isinstance(value, list) else value}"
        for name, value in about.items()
    )
    return (
        f"`{FILE}` is for [CLIP-LoRA's code](https://github.com/MaxZanella/CLIP-LoRA), at the "
        f"prompt `{method.template or adapter.templates[0]}`. Put it into "
        "`weights/BACKBONE/DATASET/SHOTSshots/seedSEED`, the backbone spelled as in `vitb16`, and "
        "run\n\n```sh\npython main.py --eval_only --save_path weights --backbone ViT-B/16 "
        f"--dataset DATASET --shots SHOTS --seed SEED {arguments}\n```\n"
    )

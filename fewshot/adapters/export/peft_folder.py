"""The LoRA pairs of clip-lora as PEFT keeps them, for transformers' CLIPModel.

https://github.com/huggingface/peft: `adapter_config.json` says where the pairs are, and
`adapter_model.safetensors` has them by transformers' names of the matrices, with
`base_model.model.` before and `lora_A.weight` or `lora_B.weight` behind. There, too, A is (r, in)
and B (out, r); `use_rslora` makes the scale alpha / sqrt(r), which is CLIP-LoRA's.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.same_model import require_model
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.parts.blocks import IN_BLOCK

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOWERS = {  # where open_clip and transformers keep the blocks
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
}
MATRICES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
SAME_WEIGHTS = {  # transformers' repositories of OpenAI's models
    "ViT-B-32/openai": "openai/clip-vit-base-patch32",
    "ViT-B-16/openai": "openai/clip-vit-base-patch16",
    "ViT-L-14/openai": "openai/clip-vit-large-patch14",
    "ViT-L-14-336/openai": "openai/clip-vit-large-patch14-336",
}


def write_peft(adapter: Adapter, encoder: Encoder, folder: Path) -> str:
    """Write both files into a folder; how to run them, in Markdown.

    Args:
        adapter: Of clip-lora, without a trained head.
        encoder: Its model.
        folder: There already.

    Raises:
        UserError: The model is another, or is none that transformers' CLIPModel has.
    """
    require_model(adapter.model, encoder.identity)
    method = CLIPLoRA(**adapter.settings)
    places = {name: _place(name, adapter.model_name) for name in adapter.tensors}
    tensors = {
        f"base_model.model.{module}.lora_{factor}.weight": adapter.tensors[name].contiguous()
        for name, (module, factor) in places.items()
    }
    base = SAME_WEIGHTS.get(adapter.model_name)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": method.rank,
        "lora_alpha": int(method.alpha) if method.alpha == int(method.alpha) else method.alpha,
        "use_rslora": True,
        "lora_dropout": method.dropout,
        "target_modules": _in_order(module for module, _ in places.values()),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    prompt = method.template or adapter.templates[0]
    return (
        f"With `pip install peft transformers`, at the prompt `{prompt}`:\n\n```python\n"
        "from peft import PeftModel\nfrom transformers import CLIPModel\n\n"
        f'clip = CLIPModel.from_pretrained("{base or "MODEL"}")\n'
        'model = PeftModel.from_pretrained(clip, "THIS FOLDER")\n```\n'
        + ("" if base else "\nMODEL is transformers' form of the model under *Identity*.\n")
    )


def _place(name: str, model: str) -> tuple[str, str]:
    """The matrix that a factor is beside, by transformers' name, and which factor it is.

    Raises:
        UserError: CLIPModel has no such matrix.
    """
    path, _, factor = name.rpartition(".")
    for ours, theirs in TOWERS.items():
        number, _, _ = path.removeprefix(f"{ours}.").partition(".")
        for key, in_block in IN_BLOCK.items():
            if path == f"{ours}.{number}.{in_block}" and number.isdigit():
                return f"{theirs}.{number}.{MATRICES[key]}", factor
    raise UserError(
        f"transformers' CLIPModel is CLIP with a plain ViT, and {model} has pairs beside {path}; "
        "use --to open_clip or --to onnx"
    )


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))

"""An adapter of what CLIP-LoRA's own code trained."""

from pathlib import Path

import torch

from cache.datasets.source import Source
from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.clip_lora_file import depths_of, read_clip_lora
from fewshot.adapters.trained_adapter import adapter_of_learner
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.clip_lora import CLIPLoRA


@torch.no_grad()
def import_clip_lora(path: Path, encoder: Encoder, source: Source) -> Adapter:
    """An adapter of one of the files of CLIP-LoRA's authors; it is not calibrated.

    Pairs that the adapter's position has beyond the file's have no effect.

    Args:
        path: The file.
        encoder: The model that it was trained on, which the file does not name.
        source: The dataset, whose classes' names the file lacks too.

    Raises:
        UserError: Damaged, something else, or of another model.
    """
    clip = Clip.of(encoder)
    settings, factors = read_clip_lora(path, depths_of(clip.model))
    method = CLIPLoRA(**settings)
    learner = method.attach(clip, source.classnames, source.templates)
    for name, parameter in learner.parameters.items():
        saved = factors.get(name, torch.zeros_like(parameter))
        if saved.shape != parameter.shape:
            raise UserError(
                f"{path} holds {tuple(saved.shape)} for {name}, and {encoder.identity['name']} has "
                f"room for {tuple(parameter.shape)}; give --model the one it was trained on"
            )
        parameter.copy_(saved)
    training = {"dataset": source.dataset, "imported": True}
    return adapter_of_learner(learner, method, encoder, source, training)

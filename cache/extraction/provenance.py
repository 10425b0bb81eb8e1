"""Which libraries and which machine computed features, as far as a byte of them depends on it."""

import contextlib
import importlib.metadata
from typing import Any

import torch

from cache.models.encoder import Encoder

COMPUTING = ("torch", "torchvision", "open_clip_torch", "pillow", "numpy")  # features


def encoding_of(encoder: Encoder, threads: int, batch_size: int) -> dict[str, Any]:
    """All that changes a byte of a feature, besides the crop or the prompt.

    Args:
        encoder: The model.
        threads: Threads of one forward pass on a CPU.
        batch_size: Crops per forward pass.
    """
    model = {k: v for k, v in encoder.identity.items() if k not in ("name", "tag")}
    libraries = versions()
    return {
        "model": model,
        "preprocessing": encoder.preprocess.identity(),
        "precision": encoder.precision,
        "machine": {**computed_on(encoder, threads), "batch_size": str(batch_size)},
        "libraries": {name: libraries[name] for name in COMPUTING if name in libraries},
    }


def versions() -> dict[str, str]:
    """Versions of what computed the features and wrote them."""
    found = {}
    for name in (*COMPUTING, "h5py", "fewshot-clip"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def computed_on(encoder: Encoder, threads: int) -> dict[str, str]:
    """The part of the machine that the last bits of a feature depend on."""
    if encoder.device.type == "cuda":
        return {"processor": torch.cuda.get_device_name(encoder.device), "threads": "1"}
    if encoder.device.type != "cpu":
        return {"processor": encoder.device.type, "threads": "1"}
    return {
        "processor": f"CPU, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(threads),
    }

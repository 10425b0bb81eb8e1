"""The unit of extraction: a fixed slice of one split, encoded and kept as one piece.

A plan is a pure function of what is to be encoded, so killing a run at any moment costs one shard,
and whoever encodes a shard, here, in another process or on another machine, writes the same bytes.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.encoder import Encoder
from cache.images import Preprocess
from cache.parts import Parts
from cache.read_ahead import read_ahead
from cache.skipped import Skipped
from cache.source import Source

ROWS = 512  # half a minute of a ViT-B on two cores: what a kill costs at most
PROMPTS_PER_BATCH = 64


@dataclass(frozen=True)
class Shard:
    """Rows of one split that are encoded together, each with `views` augmented crops."""

    split: str
    index: int
    rows: tuple[int, ...]
    views: int

    @property
    def name(self) -> str:
        """Under which the parts keep it."""
        return f"{self.split}-{self.index:05d}"


@dataclass(frozen=True)
class TextShard:
    """Prompts of one set that are encoded together."""

    prompt_set: str
    index: int
    prompts: tuple[str, ...]

    @property
    def name(self) -> str:
        """Under which the parts keep it."""
        return f"prompts-{self.prompt_set}-{self.index:05d}"


@dataclass(frozen=True)
class ShardPlan:
    """How an image becomes pixels, and where encoded shards are kept.

    Attributes:
        source: The images.
        parts: The finished shards.
        batch_size: Crops per forward pass. Part of the plan because the last bit of a matrix
            product may depend on its shape.
        crop_scale: Minimum and maximum share of the area that an augmented view keeps.
        view_seed: Seed of the views.
        skip_unreadable: Leave out images that do not decode; else a shard with such is encoded
            again each time, for they may have been fixed meanwhile.
    """

    source: Source
    parts: Parts
    batch_size: int
    crop_scale: tuple[float, float]
    view_seed: int
    skip_unreadable: bool

    def done(self, shard: Shard) -> bool:
        """True if the shard is encoded as asked, and none of its images was modified since."""
        if not self.parts.done(shard.name) or self.changed(shard):
            return False
        return self.skip_unreadable or not self.skipped(shard)

    def skipped(self, shard: Shard) -> dict[int, Skipped]:
        """The images of an encoded shard that do not decode, by row."""
        items = self.source.splits[shard.split]
        noted = {int(row): why for row, why in self.parts.note(shard.name)["skipped"].items()}
        return {row: Skipped(shard.split, items[row].path, why) for row, why in noted.items()}

    def changed(self, shard: Shard) -> list[str]:
        """The paths of an encoded shard's images that were modified since its encoding began."""
        begun = int(self.parts.note(shard.name).get("begun", 0))
        return self.source.changed_since(begun, shard.split, shard.rows)


def image_shards(rows: Mapping[str, NDArray[np.int64]], views: int) -> list[Shard]:
    """The shards of each split's rows, in store order; views are of train images alone."""
    return [
        Shard(split, i, tuple(part.tolist()), views if split == "train" else 0)
        for split, chosen in rows.items()
        for i, part in enumerate(np.split(chosen, range(ROWS, len(chosen), ROWS)))
    ]


def text_shards(prompts: Mapping[str, tuple[str, ...]]) -> list[TextShard]:
    """The shards of each prompt set, in store order."""
    return [
        TextShard(name, i // ROWS, all_prompts[i : i + ROWS])
        for name, all_prompts in prompts.items()
        for i in range(0, len(all_prompts), ROWS)
    ]


def encode_text_shard(parts: Parts, shard: TextShard, encoder: Encoder) -> None:
    """Encode prompts and keep their unnormalized embeddings (P, D).

    With them, where the text tower ends in a projection, what it projected: pooled (P, W).
    """
    batches = [
        encoder.encode_text_pooled(list(shard.prompts[i : i + PROMPTS_PER_BATCH]))
        for i in range(0, len(shard.prompts), PROMPTS_PER_BATCH)
    ]
    tensors = {"embeddings": torch.cat([embeddings for embeddings, _ in batches])}
    pooled = [before for _, before in batches if before is not None]
    if pooled:
        tensors["pooled"] = torch.cat(pooled)
    parts.save(shard.name, tensors, _computed_on(encoder))


def encode_shard(
    plan: ShardPlan,
    shard: Shard,
    encoder: Encoder,
    *,
    workers: int = 2,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Encode one shard and keep it: rows, features (n, D) and views (V, n, D), unnormalized.

    The note of the piece says which rows do not decode and why.

    Args:
        plan: What it belongs to.
        shard: Which rows.
        encoder: The model.
        workers: Threads that read and resize images while the model runs.
        advance: Called with the number of images after each batch.
    """
    begun = time.time_ns()
    encoded: list[int] = []
    features: list[Tensor] = []
    skipped: dict[int, str] = {}
    for batch in _crops(plan, shard, encoder.preprocess, workers):
        crops = {row: x for row, x in batch.items() if isinstance(x, Tensor)}
        skipped |= {row: x for row, x in batch.items() if isinstance(x, str)}
        encoded += crops
        if crops:
            flat = encoder.encode_images(torch.cat(list(crops.values())))
            features.append(flat.view(len(crops), 1 + shard.views, -1))
        advance(len(batch))
    stacked = torch.cat(features) if features else torch.empty(0, 1 + shard.views, encoder.dim)
    tensors = {
        "rows": torch.tensor(encoded, dtype=torch.int64),
        "features": stacked[:, 0].contiguous(),
        "views": stacked[:, 1:].transpose(0, 1).contiguous(),
    }
    note = {"skipped": skipped, "begun": begun, **_computed_on(encoder)}
    plan.parts.save(shard.name, tensors, note)


def _crops(
    plan: ShardPlan, shard: Shard, preprocess: Preprocess, workers: int
) -> Iterator[dict[int, Tensor | str]]:
    """Batches of row -> its crops (1 + V, 3, H, W), or why the image could not be read."""
    items = plan.source.splits[shard.split]

    def crops(row: int) -> Tensor:
        with plan.source.opened(items[row].path) as image:
            views = [
                preprocess.view(image, plan.crop_scale, (plan.view_seed, row, v))
                for v in range(shard.views)
            ]
            return torch.stack([preprocess.center(image), *views])

    per_batch = plan.batch_size // (1 + shard.views)
    return map(dict, read_ahead(shard.rows, crops, batch_size=per_batch, workers=workers))


def _computed_on(encoder: Encoder) -> dict[str, str]:
    """What the last bits of a feature depend on, besides the batch: no part of the identity."""
    if encoder.device.type == "cuda":
        return {"processor": torch.cuda.get_device_name(encoder.device), "threads": "1"}
    return {
        "processor": f"CPU, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }

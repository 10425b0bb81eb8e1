"""The contents of a file of synthesized features: written once, and read in place of a training."""

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load

from fewshot.sealed_file import write_sealed
from fewshot.synthesis.decoded import Decoding
from fewshot.synthesis.kept_files import FORMAT, KEY, Card, require_whole
from fewshot.synthesis.synthesized import Synthesized

LOG = "log"  # the tensor of every epoch's means; the card has their names


def write_kept(path: Path, made: Synthesized, card: Card) -> None:
    """Write the file whole or not at all."""
    rows = [[epoch[name] for name in card.log] for epoch in made.log]
    log = torch.tensor(rows, dtype=torch.float64)
    tensors = {"features": made.features, "labels": made.labels, LOG: log}
    tensors |= {} if made.decoding is None else made.decoding.tensors()
    write_sealed(path, KEY, FORMAT, asdict(card), tensors)


def read_kept(path: Path) -> tuple[Synthesized, Card]:
    """The features of a file, and its card.

    Raises:
        UserError: It is no such file, is damaged, or a later version wrote it.
    """
    card = require_whole(path)
    tensors = load(path.read_bytes())
    log = tuple(dict(zip(card.log, row, strict=True)) for row in tensors[LOG].tolist())
    name = card.generator.partition(" ")[0]
    features, labels = tensors["features"], tensors["labels"]
    return Synthesized(name, features, labels, log, Decoding.of(tensors)), card

"""The files in which CLIP-LoRA's code keeps what it trained.

Such a file (https://github.com/MaxZanella/CLIP-LoRA) is torch's pickle of

    {"weights": {"layer_0": {"q_proj": {"w_lora_A": (r, W), "w_lora_B": (W, r)}, ...}, ...},
     "metadata": {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"],
                  "position": "all"}}

where layers count the adapted blocks, those of the text tower first, and the output projection is
called "proj". Which blocks those are follows from the position in a fixed table for towers of 12
blocks; "all" of an image tower means as many as there are.
"""

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from cache.atomic import replacing
from cache.errors import UserError, unknown
from fewshot.endtoend.parts.lora import (
    BLOCKS,
    IN_BLOCK,
    TWELFTHS,
    Matrix,
    Position,
    Towers,
    blocks_of,
    towers_of,
)

OFFICIAL = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}
OFFICIAL_DEPTH = 12


@dataclass(frozen=True, eq=False)
class Official:
    """The content of a file of CLIP-LoRA's.

    Attributes:
        rank: r.
        alpha: Numerator of the scale alpha / sqrt(r).
        towers: Which were adapted.
        matrices: Which matrices of each block; not the MLP's.
        position: Which blocks.
        weights: What `parameters` names, float32.
    """

    rank: int
    alpha: float
    towers: Towers
    matrices: tuple[Matrix, ...]
    position: Position
    weights: Mapping[str, Tensor]


def read_official(path: Path) -> Official:
    """Read a file that CLIP-LoRA's code wrote.

    Raises:
        UserError: Damaged, something else, or of a kind that is not known.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        layers, about = content["weights"], content["metadata"]
        towers = {"vision": "image"}.get(about["encoder"], about["encoder"])
        matrices, position = tuple(about["params"]), about["position"]
        rank, alpha = int(about["r"]), about["alpha"]
    except (
        OSError,
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        TypeError,
        LookupError,
    ) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(
            f"{path} is not one of CLIP-LoRA's files ({reason}); expected a .pt with weights and "
            "metadata"
        ) from None
    names = _official_names(towers, matrices, position, len(layers))
    weights = {}
    for name, (layer, matrix, factor) in names.items():
        tensor = layers.get(layer, {}).get(matrix, {}).get(f"w_lora_{factor}")
        if tensor is None or tensor.ndim != 2 or tensor.shape[factor == "B"] != rank:
            got = "nothing" if tensor is None else tuple(tensor.shape)
            raise UserError(
                f"{path} should hold w_lora_{factor} of rank {rank} in {layer}, {matrix}; "
                f"got {got}; the file is cut short or another version's"
            )
        weights[name] = tensor
    return Official(rank, alpha, towers, matrices, position, weights)


def write_official(path: Path, official: Official) -> None:
    """Write a file that CLIP-LoRA's code reads.

    Raises:
        UserError: What was trained has no place in such a file.
    """
    factors, per_layer = 2, len(official.matrices)
    n_layers = len(official.weights) // (factors * per_layer)
    names = _official_names(official.towers, official.matrices, official.position, n_layers)
    if outside := sorted(set(official.weights) ^ set(names)):
        raise UserError(
            f"CLIP-LoRA's files hold position {official.position!r} of towers with "
            f"{OFFICIAL_DEPTH} blocks, and nothing else; {outside[0]} does not fit"
        )
    layers: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, (layer, matrix, factor) in names.items():
        tensor = official.weights[name].detach().cpu().clone()
        layers.setdefault(layer, {}).setdefault(matrix, {})[f"w_lora_{factor}"] = tensor
    about = {
        "r": official.rank,
        "alpha": official.alpha,
        "encoder": {"image": "vision"}.get(official.towers, official.towers),
        "params": list(official.matrices),
        "position": official.position,
    }
    with replacing(path) as temporary:
        torch.save({"weights": layers, "metadata": about}, temporary)


def _official_names(
    towers: Towers, matrices: Iterable[str], position: str, n_layers: int
) -> dict[str, tuple[str, str, str]]:
    """Our name of each factor -> layer, matrix and factor in the file."""
    if towers not in get_args(Towers):
        raise unknown("encoder", towers, ["both", "text", "vision"])
    if position not in TWELFTHS:
        raise unknown("position", position, TWELFTHS)
    chosen = list(matrices)
    for matrix in chosen:
        if matrix not in OFFICIAL:
            raise unknown("matrix of CLIP-LoRA's files", matrix, OFFICIAL)
    blocks: list[tuple[str, int]] = []
    for tower in towers_of(towers):
        all_images = tower == "image" and position == "all"
        depth = n_layers - len(blocks) if all_images else OFFICIAL_DEPTH
        blocks += [(tower, i) for i in blocks_of(position, depth)]
    return {
        f"{BLOCKS[tower]}.{i}.{IN_BLOCK[m]}.{factor}": (f"layer_{layer}", OFFICIAL[m], factor)
        for layer, (tower, i) in enumerate(blocks)
        for m in OFFICIAL
        if m in chosen
        for factor in ("A", "B")
    }

"""The files in which CLIP-LoRA's authors keep what they trained.

Such a file (https://github.com/MaxZanella/CLIP-LoRA) is torch's pickle of

    {"weights": {"layer_0": {"q_proj": {"w_lora_A": (r, W), "w_lora_B": (W, r)}, ...}, ...},
     "metadata": {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"],
                  "position": "all"}}

where layers count the adapted blocks, those of the text tower first, and the output projection is
called "proj". Neither the model nor its depth is in it. A position means the same blocks at every
depth in the authors' table: "half-up" are blocks 6 to 11 of ViT-L/14's 24, and "all" the first 21
of them. A file with as many layers as the same share of the depth has is read as that.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from cache.errors import UserError, unknown
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.parts.blocks import (
    IN_BLOCK,
    PLACES,
    TWELFTHS,
    Towers,
    blocks_of,
    image_kind,
    towers_of,
)

DAMAGED = "it is cut short, or holds more than tensors, which may be code and is not run"
MATRICES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}
POSITIONS = {
    "bottom": range(4),
    "mid": range(4, 8),
    "up": range(8, 12),
    "half-bottom": range(6),
    "half-up": range(6, 12),
    "all": range(21),
    "top": range(11, 12),
    "top1": range(11, 12),
    "top2": range(10, 12),
    "top3": range(9, 12),
}


def read_clip_lora(
    path: Path, depths: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings of `CLIPLoRA` and, by their names in the model, the factors that a file holds.

    The position is the narrowest of ours that has all blocks of the file.

    Args:
        path: The file.
        depths: Blocks of each tower of the model, by `text` and `image`.

    Raises:
        UserError: Damaged, something else, or of a model of another depth.
    """
    layers, about = _content(path)
    theirs = {tower: _blocks(about.position, depths[tower]) for tower in towers_of(about.towers)}
    ours = theirs
    if about.position in TWELFTHS:
        ours = {tower: blocks_of(about.position, depths[tower]) for tower in theirs}
    fitting = [chosen for chosen in (theirs, ours) if sum(map(len, chosen.values())) == len(layers)]
    if not fitting:
        model = " and ".join(f"{depths[tower]} {tower} blocks" for tower in theirs)
        raise UserError(
            f"{path} holds {len(layers)} layers; position {about.position} of a model with {model} "
            f"has {sum(map(len, theirs.values()))}; give --model the one it was trained on"
        )
    chosen = fitting[0]
    factors = {
        name: _factor(path, layers, layer, matrix, factor, about.rank)
        for name, layer, matrix, factor in _factors(chosen, about.matrices)
    }
    named = {MATRICES[matrix] for matrix in about.matrices}
    if beside := {matrix for layer in layers.values() for matrix in layer} - named:
        raise UserError(
            f"{path} holds {min(beside, key=str)} beside the params of its metadata, "
            f"{', '.join(about.matrices)}; the file is another version's"
        )
    covering = [
        p for p in TWELFTHS if all({*chosen[t]} <= {*blocks_of(p, depths[t])} for t in chosen)
    ]
    settings = {
        "rank": about.rank,
        "alpha": about.alpha,
        "towers": about.towers,
        "matrices": ",".join(about.matrices),
        "position": min(covering, key=lambda p: len(blocks_of(p, 12))),
    }
    return settings, factors


class _About(NamedTuple):
    """The metadata of a file, in our words."""

    towers: Towers
    matrices: list[str]
    position: str
    rank: int
    alpha: float


def _content(path: Path) -> tuple[Mapping[str, Any], _About]:
    """The layers of a file and its metadata, which are of the authors' values.

    Raises:
        UserError: Damaged, or something else.
    """
    content = _loaded(path)
    try:
        layers, said = content["weights"], content["metadata"]
        towers: Any = {"vision": "image"}.get(said["encoder"], said["encoder"])
        about = _About(
            towers=towers,
            matrices=list(said["params"]),
            position=said["position"],
            rank=int(said["r"]),
            alpha=float(said["alpha"]),
        )
        len(layers)
    except LookupError as error:
        raise _not_theirs(path, f"it has no {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise _not_theirs(path, str(error) or repr(error)) from None
    if not math.isfinite(about.alpha):
        raise _not_theirs(path, f"its alpha is {about.alpha}")
    if not about.matrices:
        raise _not_theirs(path, "its params name no matrix")
    if about.towers not in get_args(Towers):
        raise unknown("encoder", str(about.towers), ["both", "text", "vision"])
    if about.position not in POSITIONS:
        raise unknown("position of CLIP-LoRA's files", str(about.position), POSITIONS)
    for matrix in about.matrices:
        if matrix not in MATRICES:
            raise unknown("matrix of CLIP-LoRA's files", str(matrix), MATRICES)
    return layers, about


def _loaded(path: Path) -> Any:
    """The content of a pickle of torch's; nothing in it is run."""
    try:
        with warnings.catch_warnings():  # torch has some for pickles that it refuses
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror if error.filename else None
        raise _not_theirs(path, reason or DAMAGED) from None
    except Exception:  # whatever a damaged or hostile file makes of the unpickler
        raise _not_theirs(path, DAMAGED) from None


def _not_theirs(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is not one of CLIP-LoRA's files: {reason}; expected a .pt with weights and "
        "metadata"
    )


def _factor(
    path: Path, layers: Mapping[str, Any], layer: str, matrix: str, factor: str, rank: int
) -> Tensor:
    """A factor of a file.

    Raises:
        UserError: It is not there, of another rank, or not finite.
    """
    try:
        tensor: Tensor = layers[layer][matrix][factor]
        got = str(tuple(tensor.shape))
        whole = tensor.ndim == 2 and tensor.shape[factor == "w_lora_B"] == rank
    except (LookupError, TypeError, AttributeError):
        got, whole = "nothing", False
    if not whole:
        raise UserError(
            f"{path} should hold {factor} of rank {rank} in {layer}, {matrix}; got {got}; the "
            "file is cut short or another version's"
        )
    if not bool(tensor.isfinite().all()):
        raise UserError(
            f"{path} should hold finite numbers; {factor} in {layer}, {matrix}, has some that are "
            "infinite or none; its training went wrong, so train again"
        )
    return tensor


def write_clip_lora(
    path: Path, method: CLIPLoRA, factors: Mapping[str, Tensor], depths: Mapping[str, int]
) -> dict[str, Any]:
    """Write a file that CLIP-LoRA's code reads; what it says of the method.

    Args:
        path: Written in place.
        method: What was trained.
        factors: A and B of every pair, by their names in the model.
        depths: Blocks of each tower of the model, by `text` and `image`.

    Raises:
        UserError: What was trained has no place in such a file.
    """
    matrices = [matrix for matrix in IN_BLOCK if matrix in method.matrices.split(",")]
    if outside := [matrix for matrix in matrices if matrix not in MATRICES]:
        raise UserError(
            f"CLIP-LoRA's files hold pairs beside {', '.join(MATRICES)} alone; this adapter has "
            f"some beside {outside[0]}; use --to open_clip"
        )
    if method.alpha != int(method.alpha):
        raise UserError(
            f"alpha is an integer in CLIP-LoRA's files; got {method.alpha}; use --to open_clip"
        )
    chosen = {t: _blocks(method.position, depths[t]) for t in towers_of(method.towers)}
    places = list(_factors(chosen, matrices))
    known = {name for name, *_ in places}
    for name, tensor in factors.items():
        if name not in known and name.endswith(".B") and bool(tensor.any()):
            raise UserError(
                f"{name.removesuffix('.B')} has no place in CLIP-LoRA's files, in which position "
                f"{method.position} ends before; use --to open_clip"
            )
    layers: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, layer, matrix, factor in places:
        tensor = factors[name].detach().cpu().clone()
        layers.setdefault(layer, {}).setdefault(matrix, {})[factor] = tensor
    about = {
        "r": method.rank,
        "alpha": int(method.alpha),
        "encoder": {"image": "vision"}.get(method.towers, method.towers),
        "params": matrices,
        "position": method.position,
    }
    torch.save({"weights": layers, "metadata": about}, path)
    return about


def depths_of(model: Any) -> dict[str, int]:
    """Blocks of each tower of open_clip's CLIP, by `text` and `image`.

    Raises:
        UserError: A tower is of another kind.
    """
    if not hasattr(model, "transformer") or not hasattr(model.visual, "transformer"):
        raise UserError(
            "CLIP-LoRA's files are of CLIP with a plain ViT; this model is a "
            f"{type(model).__name__} with a {image_kind(model)}; use one such as ViT-B-16/openai"
        )
    return {tower: len(model.get_submodule(path)) for tower, (path, *_) in PLACES.items()}


def _blocks(position: str, depth: int) -> range:
    """The blocks that a position means in a tower of that depth."""
    blocks = POSITIONS[position]
    return range(min(blocks.start, depth), min(blocks.stop, depth))


def _factors(
    chosen: Mapping[str, range], matrices: Sequence[str]
) -> Iterator[tuple[str, str, str, str]]:
    """Of each factor its name in the model, and its layer, matrix and name in the file."""
    blocks = [(tower, i) for tower, numbers in chosen.items() for i in numbers]
    for layer, (tower, i) in enumerate(blocks):
        for matrix in (m for m in MATRICES if m in matrices):
            for factor in "AB":
                name = f"{PLACES[tower][0]}.{i}.{IN_BLOCK[matrix]}.{factor}"
                yield name, f"layer_{layer}", MATRICES[matrix], f"w_lora_{factor}"

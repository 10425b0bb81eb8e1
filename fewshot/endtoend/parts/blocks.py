"""The parts of CLIP's towers by name: which blocks a position means, and where each matrix is."""

from collections.abc import Sequence
from typing import Any, Literal

from cache.errors import UserError, unknown

Towers = Literal["both", "text", "image"]
Position = Literal["all", "bottom", "mid", "up", "half-bottom", "half-up"]

TWELFTHS = {  # of a tower's depth; at 12 blocks CLIP-LoRA's
    "all": (0, 12),
    "bottom": (0, 4),
    "mid": (4, 8),
    "up": (8, 12),
    "half-bottom": (0, 6),
    "half-up": (6, 12),
}
IN_BLOCK = {
    "q": "attn.q_proj",
    "k": "attn.k_proj",
    "v": "attn.v_proj",
    "o": "attn.out_proj",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
}
IN_POOL = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "c_proj"}
BLOCKS = {"text": "transformer.resblocks", "image": "visual.transformer.resblocks"}


def matrix_paths(model: Any, tower: str, matrices: Sequence[str], position: str) -> list[str]:
    """Paths of the chosen matrices of one tower, block by block, in the order of `IN_BLOCK`.

    Args:
        model: An unfused open_clip CLIP.
        tower: `text` or `image`.
        matrices: Attention's query, key, value and output projections, and the MLP's two.
        position: Which blocks: all, a third or a half of the depth, counted from the input. A
            ResNet has one attention, which belongs to every position.

    Raises:
        UserError: An unknown name, or a tower without such a matrix.
    """
    for matrix in matrices:
        if matrix not in IN_BLOCK:
            raise unknown("matrix", matrix, IN_BLOCK)
    chosen = [matrix for matrix in IN_BLOCK if matrix in matrices]
    if tower == "image" and hasattr(model.visual, "attnpool"):
        if outside := [matrix for matrix in chosen if matrix not in IN_POOL]:
            raise UserError(
                f"a ResNet's image tower has no matrix {', '.join(outside)}; "
                f"choose of {', '.join(IN_POOL)}, or the text tower"
            )
        return [f"visual.attnpool.{IN_POOL[matrix]}" for matrix in chosen]
    rows = blocks_of(position, len(model.get_submodule(BLOCKS[tower])))
    return [f"{BLOCKS[tower]}.{i}.{IN_BLOCK[matrix]}" for i in rows for matrix in chosen]


def towers_of(towers: Towers) -> tuple[str, ...]:
    """The towers' names in the order of all that is listed here."""
    return ("text", "image") if towers == "both" else (towers,)


def blocks_of(position: str, depth: int) -> range:
    """The numbers of a tower's blocks at that position.

    Thirds and halves are rounded outwards: none is empty, and where the depth does not divide,
    neighbors share a block.

    Raises:
        UserError: No such position.
    """
    if position not in TWELFTHS:
        raise unknown("position", position, TWELFTHS)
    first, last = TWELFTHS[position]
    return range(first * depth // 12, -(-last * depth // 12))

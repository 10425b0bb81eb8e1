"""The parts of CLIP's towers by name: which blocks a position means, and where each matrix is."""

from collections.abc import Sequence
from typing import Any, Literal

from cache.errors import UserError, unknown
from fewshot.endtoend.attention import Attention

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
IN_TIMMS = {  # the first of these that there is
    "q": ("attn.qkv.q_proj", "attn.q_proj"),
    "k": ("attn.qkv.k_proj", "attn.k_proj"),
    "v": ("attn.qkv.v_proj", "attn.v_proj"),
    "o": ("attn.proj",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
}
PLACES = {  # where models keep the blocks of a tower
    "text": ("transformer.resblocks", "text.transformer.resblocks"),
    "image": ("visual.transformer.resblocks", "visual.trunk.blocks", "visual.blocks"),
}


def blocks_path(model: Any, tower: str, technique: str) -> str:
    """Path of the list of a tower's blocks.

    Args:
        model: An unfused model.
        tower: `text` or `image`.
        technique: The name of what needs them, for errors.

    Raises:
        UserError: The tower has none, or of a kind that cannot be changed.
    """
    for path in PLACES[tower]:
        blocks: Any = _found(model, path)
        if blocks is None or not len(blocks):
            continue
        block = blocks[0]
        if _is_open_clips(block) or is_timms(block):
            return path
        raise UserError(
            f"{technique} needs plain transformer blocks; those of the {tower} tower are "
            f"{type(block).__name__}; use a model such as ViT-B-16/openai"
        )
    if tower == "text":
        kind = type(getattr(model, "text", model)).__name__
        raise UserError(
            f"{technique} needs the blocks of open_clip's text transformer; the text tower is a "
            f"{kind}; use towers=image, or a model such as ViT-B-16/openai"
        )
    raise UserError(
        f"{technique} needs the blocks of a vision transformer; the image tower is a "
        f"{image_kind(model)}; use a model such as ViT-B-16/openai"
    )


def image_kind(model: Any) -> str:
    """The class of the image tower, timm's inside of open_clip's wrapper."""
    return type(getattr(model.visual, "trunk", model.visual)).__name__


def is_timms(block: Any) -> bool:
    """True for timm's block, with a norm before each half, or one with branches in place of it."""
    from timm.models.eva import EvaBlock
    from timm.models.vision_transformer import Block

    if not hasattr(block, "norm1"):
        return False
    plain = type(block) in (Block, EvaBlock) or hasattr(block, "branches")
    return plain and (_found(block, "attn.qkv.q_proj") or _found(block, "attn.q_proj")) is not None


def norms_of(block: Any) -> tuple[str, str]:
    """The names of a block's norms, before attention and before the MLP."""
    return ("norm1", "norm2") if is_timms(block) else ("ln_1", "ln_2")


def holder_of_projections(block: Any) -> Any:
    """The module of a block that has `q_proj`, `k_proj` and `v_proj`."""
    return block.get_submodule(matrix_in(block, "q", "").rpartition(".")[0])


def matrix_in(block: Any, matrix: str, path: str) -> str:
    """Path within a block of one of the matrices of `IN_BLOCK`; `path` is the block's, for errors.

    Raises:
        UserError: The block has no such matrix.
    """
    names = IN_TIMMS[matrix] if is_timms(block) else (IN_BLOCK[matrix],)
    for name in names:
        if _found(block, name) is not None:
            return name
    mlp = type(block.mlp).__name__
    raise UserError(
        f"the blocks have no matrix {matrix}: {path} has a gated MLP, {mlp}, of other matrices; "
        "choose of q, k, v, o, fc2 with --set matrices"
    )


def _is_open_clips(block: Any) -> bool:
    return isinstance(getattr(block, "attn", None), Attention)


def _found(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def matrix_paths(model: Any, tower: str, matrices: Sequence[str], position: str) -> list[str]:
    """Paths of the chosen matrices of one tower, block by block, in the order of `IN_BLOCK`.

    Args:
        model: An unfused model.
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
    path = blocks_path(model, tower, "an update of matrices")
    blocks = model.get_submodule(path)
    return [
        f"{path}.{i}.{matrix_in(blocks[i], matrix, f'{path}.{i}')}"
        for i in blocks_of(position, len(blocks))
        for matrix in chosen
    ]


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

"""An adapter's open-set score as plain values and tensors, and back."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from cache.errors import UserError
from fewshot.adapters.classifiers import put_parts_together, take_apart
from fewshot.model_selection.open_set_scores import PARTS
from fewshot.model_selection.unknown_classes import OpenSet

PREFIX = "open_set."  # of the names of its tensors
_KINDS = {part.kind: part for part in PARTS}


def plain_open_set(open_set: OpenSet) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card's entry, in which tensors stand by name, and these tensors."""
    tree, tensors = take_apart(open_set.score, _KINDS)
    values = {field.name: getattr(open_set, field.name) for field in fields(open_set)}
    named = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
    return {**values, "compared": dict(open_set.compared), "score": tree}, named


def split_tensors(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the classifier, and those of the open-set score by their own names."""
    own = {name: t for name, t in tensors.items() if not name.startswith(PREFIX)}
    names = tensors.keys() - own.keys()
    return own, {name.removeprefix(PREFIX): tensors[name] for name in sorted(names)}


def opened_open_set(
    entry: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]
) -> OpenSet | None:
    """The open-set score of a card's entry; None where there is none.

    Args:
        entry: One that `require_card` lets pass, or None.
        tensors: The score's, by name.

    Raises:
        UserError: The tensors make no such score.
    """
    if entry is None and not tensors:
        return None
    try:
        if entry is None:
            raise KeyError("its tensors are there, and its entry is not")
        score = put_parts_together(entry["score"], tensors, _KINDS)
        sizes = {t.shape[-1] for t in tensors.values() if t.ndim == 2}
        found = score.score(torch.ones(2, sizes.pop()))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"open_set: expected parts that fit, got others ({reason})") from None
    if found.shape != (2,) or not torch.isfinite(found).all():
        raise UserError("open_set: expected a finite score of each image, got others")
    values = {**entry, "score": score, "held_out": tuple(entry["held_out"])}
    return OpenSet(**{**values, "range": tuple(entry["range"])})

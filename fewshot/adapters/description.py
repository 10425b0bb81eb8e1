"""An adapter in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from cache.errors import count
from fewshot.adapters.adapter import Adapter
from fewshot.model_selection.conformal import needed

_NAMED = 20  # of many classes, how many are named
UNCOVERED = (
    "file of format 1: its digest covers the tensors, but not the class names, the temperature and "
    "the rest of its header; fit again for a file whose every byte is covered"
)


def describe(adapter: Adapter) -> str:
    """Describe an adapter, its origin and its calibration, for a terminal."""
    parts = [adapter.summary(), *([UNCOVERED] if adapter.format == 1 else [])]
    for title, lines in (
        ("model", _values(adapter.model)),
        ("preprocessing", _values(adapter.preprocessing)),
        ("classes", _classes(adapter)),
        ("prompts", _prompts(adapter)),
        ("settings", _values(adapter.settings)),
        ("learned from", _values(adapter.training)),
        ("calibration", _calibration(adapter)),
        ("unknown images", _unknown(adapter)),
        ("prediction sets", _sets(adapter)),
        ("tensors", _tensors(adapter)),
    ):
        found = list(lines)
        if found:
            parts += [title, *(f"  {line}" for line in found)]
    return "\n".join(parts)


def verified(adapter: Adapter) -> str:
    """State what reading an adapter without an error says of its file."""
    return "whole and unchanged" if adapter.format > 1 else f"tensors unchanged; {UNCOVERED}"


def _values(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if value is None or (isinstance(value, list) and len(value) > _NAMED):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
        yield f"{name}: {value}"


def _classes(adapter: Adapter) -> Iterator[str]:
    counts = adapter.training.get("images per class") or []
    for i, name in enumerate(adapter.classnames[:_NAMED]):
        yield f"{i:>4}  {name}" + (f"  ({count(counts[i], 'image')})" if counts else "")
    if len(adapter.classnames) > _NAMED:
        yield f"and {len(adapter.classnames) - _NAMED:,} more"


def _prompts(adapter: Adapter) -> Iterator[str]:
    if adapter.templates:
        yield from adapter.templates
    elif adapter.prompts:
        first = adapter.prompts[0]
        yield f"{sum(map(len, adapter.prompts)):,}, of {adapter.classnames[0]}: {'; '.join(first)}"


def _calibration(adapter: Adapter) -> Iterator[str]:
    known, rule = adapter.calibration, adapter.label_rule
    if rule is not None:
        yield f"{count(rule.images, 'image')}: folds of the images learned from"
        yield f"mAP: {100 * rule.mean_average_precision:.1f} %"
        thresholds = zip(adapter.classnames[:_NAMED], rule.thresholds, strict=False)
        yield f"a label from: {', '.join(f'{name} {100 * p:.1f} %' for name, p in thresholds)}"
        return
    if known.accuracy is None or known.interval is None or known.error is None:
        yield "none: there were no labeled images to judge by; probabilities are the model's own"
        return
    low, high = known.interval
    where = {"cv": "folds of the images learned from", "val": "validation images"}[known.source]
    yield f"{count(known.images, 'image')}: {where}"
    yield f"accuracy: {100 * known.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    yield f"temperature: {known.temperature:.4g}"
    yield f"expected calibration error: {known.error:.3f}; {known.error_before:.3f} at 1"


def _unknown(adapter: Adapter) -> Iterator[str]:
    known = adapter.open_set
    if known is not None:
        low, high = known.range
        yield f"score: {known.name}, of {count(len(known.held_out), 'held-out image')}"
        yield f"AUROC on hidden classes: {known.auroc:.3f} ({low:.3f} to {high:.3f})"
        yield f"refused where 95 % of known images are kept: {100 * known.refused:.1f} %"


def _sets(adapter: Adapter) -> Iterator[str]:
    n = sum(map(len, adapter.held_out))
    if n:
        own = sum(len(of_class) >= needed(0.9) for of_class in adapter.held_out)
        yield f"thresholds from {count(n, 'held-out image')}"
        yield f"classes with one of their own at coverage 0.9: {own:,}"


def _tensors(adapter: Adapter) -> Iterator[str]:
    for name in sorted(adapter.tensors):  # a file gives them in another order at each reading
        tensor = adapter.tensors[name]
        yield f"{name}: {tuple(tensor.shape)} {tensor.dtype}"

"""All figures of an outcome as plain values, for other programs."""

from dataclasses import asdict
from typing import Any

import torch

from cache.pair import Pair
from fewshot.automatic.outcome import Outcome
from fewshot.automatic.unlabeled import Unlabeled
from fewshot.model_selection.learning_curve import LearningCurve
from fewshot.model_selection.unknown_classes import OpenSet


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Every figure of the page, as plain values; images by their paths."""
    selection = outcome.validation.selection
    names = outcome.store.classnames
    paths = outcome.paths
    found: dict[str, Any] = {
        "dataset": outcome.dataset,
        "photos": str(outcome.source.root),
        "store": str(outcome.store.path),
        "fingerprint": outcome.store.fingerprint,
        "model": outcome.store.model,
        "classes": list(names),
        "labeled": len(paths),
        "judged": int((outcome.validation.fold >= 0).sum()),
        "winner": {"method": outcome.winner, "settings": dict(outcome.adapter.settings)},
        "accuracy": outcome.accuracy,
        "interval": outcome.interval,
        "backbones": [asdict(one) for one in outcome.backbones],
        "pair_weight": outcome.store.share if isinstance(outcome.store, Pair) else None,
        "tried": [asdict(one) for one in selection.scores] if selection else [],
        "failed": [asdict(one) for one in outcome.validation.failed],
        "given_up": [asdict(one) for one in outcome.validation.given_up],
        "still_to_be_tried": list(outcome.validation.pending),
        "calibration": asdict(outcome.adapter.calibration),
        "unknown": _unknown(outcome.adapter.open_set),
        "coverage": [asdict(one) for one in outcome.coverages],
        "tested": outcome.tested and asdict(outcome.tested),
        "per_class": _per_class(outcome),
        "confusions": _confusions(outcome),
        "mislabeled": _mislabeled(outcome),
        "near_duplicates": [
            [paths[row] for row in rows] for rows in outcome.diagnostics.duplicates
        ],
        "learning_curve": _curve(outcome.diagnostics.curve),
        "more_labels": outcome.more_labels,
        "unlabeled": outcome.unlabeled and _unlabeled(outcome.unlabeled, names),
        "left_out": list(map(str, outcome.store.skipped)),
        "notes": list(outcome.report.notes),
        "commands": [asdict(one) for one in outcome.commands],
        "seconds": dict(outcome.seconds),
    }
    return found


def _per_class(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {
            "class": name,
            "judged": one.images,
            "right": one.right,
            "predicted": one.predicted,
            "recall": one.recall,
            "precision": one.precision,
            "f1": one.f1,
        }
        for name, one in zip(
            outcome.store.classnames, outcome.diagnostics.class_metrics, strict=True
        )
    ]


def _confusions(outcome: Outcome) -> list[dict[str, Any]]:
    names = outcome.store.classnames
    return [
        {
            "class": names[way.label],
            "predicted": names[way.predicted],
            "count": way.count,
            "examples": [outcome.paths[row] for row in way.rows],
        }
        for pair in outcome.diagnostics.pairs
        for way in (pair.more, pair.less)
        if way.count
    ]


def _mislabeled(outcome: Outcome) -> list[dict[str, Any]]:
    names = outcome.store.classnames
    return [
        {
            "path": outcome.paths[one.row],
            "label": names[one.label],
            "suggested": names[one.suggested],
            "p_label": one.p_label,
            "p_suggested": one.p_suggested,
            "near_duplicate": one.duplicate,
        }
        for one in outcome.diagnostics.label_issues
    ]


def _curve(curve: LearningCurve | None) -> dict[str, Any] | None:
    if curve is None:
        return None
    points, forecasts = map(asdict, curve.points), map(asdict, curve.forecasts)
    return {"points": list(points), "predictions": list(forecasts)}


def _unknown(found: OpenSet | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "score": found.name,
        "auroc": found.auroc,
        "range": list(found.range),
        "refused": found.refused,
        "compared": dict(found.compared),
    }


def _unlabeled(found: Unlabeled, names: tuple[str, ...]) -> dict[str, Any]:
    counts = torch.bincount(found.probabilities.argmax(dim=1), minlength=len(names)).tolist()
    return {
        "folder": str(found.source.root),
        "images": len(found.paths),
        "predicted": [{"class": name, "images": n} for name, n in zip(names, counts, strict=True)],
        "label_next": [
            {
                "path": found.paths[one.row],
                "predicted": names[one.predicted],
                "runner_up": names[one.runner_up],
                "margin": one.margin,
            }
            for one in found.next
        ],
        "left_out": list(map(str, found.skipped)),
    }

"""The main job in miniature: zero-shot and GDA on one store, a table, and a plot."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cache.store import FeatureStore
from fewshot.evaluate import evaluate
from fewshot.plots import accuracy_against_shots
from fewshot.results import Result
from fewshot.settings import configure
from fewshot.tables import curves

SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2, 3)


def run(store: FeatureStore, advance: Callable[[int], None] = lambda n: None) -> list[Result]:
    """Zero-shot once, and GDA with every number of shots and every seed.

    Args:
        store: The features.
        advance: Called after each fit.
    """
    results = [evaluate(store, configure("zero-shot", logit_scale=store.logit_scale))]
    for shots in SHOTS:
        for seed in SEEDS:
            method = configure("gda", logit_scale=store.logit_scale)
            results.append(evaluate(store, method, shots=shots, seed=seed))
            advance(1)
    return results


def plot(results: Sequence[Result], path: Path) -> None:
    """Write accuracy against shots as a PNG; what uses no shots is a level."""
    rows = curves(results)
    learnt = {row[2]: points for row, points in rows.items() if points[0][0] > 0}
    levels = {row[2]: points[0][1] for row, points in rows.items() if points[0][0] == 0}
    accuracy_against_shots(learnt, levels, f"{results[0].dataset}, {results[0].model}", path)

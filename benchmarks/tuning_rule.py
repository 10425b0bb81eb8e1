"""How much accuracy each rule of choosing hyper-parameters loses against the best setting.

python -m benchmarks.tuning_rule features/ucf101/ViT-B-16-openai.h5 [STORE ...]

Scores the method's grid by cross-validation on the few shots of the tasks of `few_shot_tasks`, and
judges every setting on the tasks' other images. Never on a test split.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Mapping

from benchmarks.few_shot_tasks import Task, tasks
from cache.store import FeatureStore
from fewshot import METHODS, configure
from fewshot.method import Method
from fewshot.model_selection.choosing import VariantScore, best
from fewshot.model_selection.folds import held_out
from fewshot.model_selection.tuning import cv_folds
from fewshot.store_features import class_text

SHOTS = (2, 4, 8, 16)
SEEDS = (1, 2, 3)
NAMES = ("gda", "proker", "ridge", "tip-adapter")


def within_one_error(scores: Mapping[Method, VariantScore]) -> Method:
    """Of the settings within a standard error of the best accuracy, the lowest log-loss."""
    right = {method: float(score.correct.float().mean()) for method, score in scores.items()}
    top = max(right.values())
    error = math.sqrt(top * (1 - top) / len(next(iter(scores.values())).correct))
    return min((m for m in scores if right[m] >= top - error), key=lambda m: scores[m].loss)


def lost(store: FeatureStore, name: str, task: Task) -> dict[str, float]:
    """The accuracy that each rule loses against the best setting of the grid."""
    own = configure(name, logit_scale=store.logit_scale)
    text = class_text(store, own, None, task.classes)
    grid = {
        field: tuple(dict.fromkeys((*values, getattr(own, field))))
        for field, values in own.grid.items()
    }
    support, scores = task.support, defaultdict[Method, VariantScore](VariantScore)
    for train, rows in held_out(support, cv_folds(support)):
        for variant, logits in own.sweep(grid, train, text, support.features[rows]):
            scores[variant].add(logits, support.labels[rows])
    accuracy = {
        variant: float((logits.argmax(dim=1) == task.labels).float().mean())
        for variant, logits in own.sweep(grid, support, text, task.query)
    }
    chosen = {
        "this rule": best(scores, own),
        "most accurate": max(scores, key=lambda m: scores[m].rank),
        "within one error": within_one_error(scores),
        "defaults": own,
    }
    top = max(accuracy.values())
    return {rule: top - accuracy[method] for rule, method in chosen.items()}


def main(paths: list[str]) -> None:
    """Print, for each method and rule, the mean and the maximum loss in %."""
    for name in NAMES:
        assert name in METHODS
        by_task = defaultdict[tuple[str, int], list[dict[str, float]]](list)
        for store in map(FeatureStore.open, paths):
            for task in tasks(store, SHOTS, SEEDS):
                by_task[task.name, task.shots].append(lost(store, name, task))
        losses: dict[str, list[float]] = defaultdict(list)
        for every in by_task.values():
            for rule in every[0]:
                losses[rule].append(sum(one[rule] for one in every) / len(every))
        cells = (f"{r} {100 * sum(v) / len(v):.2f} {100 * max(v):.1f}" for r, v in losses.items())
        print(f"{name:12s}", " | ".join(cells))


if __name__ == "__main__":
    main(sys.argv[1:])

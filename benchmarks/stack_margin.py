"""Stack against the best of seven methods in hindsight, and how much its weights could still gain.

python -m benchmarks.stack_margin features/*/*.h5 [--shots 2,4] [--seeds 1,2,3]

Tunes each method by cross-validation on the few shots of the tasks of `few_shot_tasks`, where there
are two or more, and prints the accuracy in % less that of the method that turned out best on the
task, averaged over seeds. The row `known labels` is of the same bases, with weights found on the
labels of the judged images themselves: no rule for weights can be expected to do better. Behind it
stand stack's accuracy less zero-shot's, and that of the worst seed. Never on a test split.
"""

import argparse
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch

from benchmarks.default_settings import percent
from benchmarks.few_shot_tasks import Task, tasks
from cache.store import FeatureStore
from fewshot import Text, configure
from fewshot.methods.stack import CLEAR, Stack
from fewshot.model_selection import tuning
from fewshot.parts.pooling import pool_weights
from fewshot.store_features import class_text

RIVALS = ("gda", "proker", "tip-adapter", "ridge", "ape", "text-probe", "zs-lp")
STACK, BOUND, ZERO_SHOT = "stack", "known labels", "zero-shot"
FREE = 1.0  # pull, in images times nats: hundreds of images outweigh it


def accuracies(store: FeatureStore, task: Task) -> dict[str, float]:
    """The accuracy in % of each rival, of stack, and of its bases weighed on the known labels."""
    found = {}
    for name in (ZERO_SHOT, *RIVALS, STACK):
        own = configure(name, logit_scale=store.logit_scale)
        text = class_text(store, own, None, task.classes)
        protocol = "cv" if task.shots > 1 else "none"
        method, classifier = tuning.fit_tuned(
            own, task.support, text, protocol=protocol, logit_scale=store.logit_scale
        )
        found[name] = percent(classifier.logits(task.query), task.labels)
    assert isinstance(method, Stack)
    assert text is not None
    found[BOUND] = _known(method, task, text)
    return found


def _known(stack: Stack, task: Task, text: Text) -> float:
    """The accuracy in % of the stack's bases with the weights that suit the judged images best."""
    alone: list[dict[str, Any]] = [{one: float(one == name) for one in CLEAR} for name in CLEAR]
    bases = [replace(stack, **only).fit(task.support, text) for only in alone]
    logits = torch.stack([base.logits(task.query) for base in bases])
    tuned = [getattr(stack, name) for name in CLEAR]
    start = torch.tensor([0.2 if w == "prior" else w for w in tuned], dtype=torch.float64)
    free = torch.ones(len(start), dtype=torch.bool)
    best = pool_weights([logits], [task.labels], start, free, pull=FREE)
    return percent(torch.tensordot(best, logits.double(), 1), task.labels)


def main() -> None:
    """Print a row for each task and number of shots, then the means and minima."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--shots", default="2,4")
    parser.add_argument("--seeds", default="1,2,3")
    asked = parser.parse_args()
    shots, seeds = (tuple(map(int, one.split(","))) for one in (asked.shots, asked.seeds))
    ahead = defaultdict[tuple[str, int], list[float]](list)
    for store in map(FeatureStore.open, asked.stores):
        seen = defaultdict[tuple[str, int], list[dict[str, float]]](list)
        for task in tasks(store, shots, seeds):
            seen[task.name, task.shots].append(accuracies(store, task))
        for (name, k), by_seed in seen.items():
            mean = {m: sum(one[m] for one in by_seed) / len(by_seed) for m in by_seed[0]}
            best = max(RIVALS, key=mean.__getitem__)
            gains = {m: mean[m] - mean[best] for m in (STACK, BOUND)}
            for m, gain in gains.items():
                ahead[m, k].append(gain)
            cells = [f"{m} {gain:+.2f}" for m, gain in gains.items()]
            over = [one[STACK] - one[ZERO_SHOT] for one in by_seed]
            cells.append(f"over zero-shot {sum(over) / len(over):+.2f}, worst {min(over):+.2f}")
            print(f"{name:14s} {k:2d} shots  {best:11s} {mean[best]:5.1f}  ", *cells, flush=True)
    for (m, k), every in sorted(ahead.items()):
        print(
            f"{m:12s} {k:2d} shots  mean {sum(every) / len(every):+.2f}  minimum {min(every):+.2f}"
        )


if __name__ == "__main__":
    main()

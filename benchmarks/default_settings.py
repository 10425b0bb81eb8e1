"""How much accuracy the defaults lose against the best setting, and what would lose less.

python -m benchmarks.default_settings features/*/*.h5 [--methods gda,ridge]

Fits every setting of a method's grid to the tasks of `few_shot_tasks`, blended with zero-shot as
always. The setting of the minimum mean and worst loss over all tasks and shots is chosen, on all
datasets and on all but one, and judged on the one left out. Prints, for the defaults and for these
choices, in %, the loss on average and at worst, and the gain over zero-shot likewise.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.few_shot_tasks import Task, tasks
from cache.store import FeatureStore
from fewshot import Text, configure
from fewshot.method import Method
from fewshot.model_selection.blending import blend_of
from fewshot.store_features import class_text

SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2, 3)
NAMES = "gda,ridge,proker,tip-adapter,ape,tip-x,transclip"


def accuracies(own: Method, task: Task, text: Text, logit_scale: float) -> dict[Method, float]:
    """The accuracy in % of every setting of the grid, and of the method's own."""
    grid = {
        field: tuple(dict.fromkeys((*values, getattr(own, field))))
        for field, values in own.grid.items()
    }
    blend = blend_of(own, task.support, text, logit_scale=logit_scale)
    blended = None if blend is None else blend.on(task.query)
    return {
        variant: percent(logits if blended is None else blended(logits), task.labels)
        for variant, logits in own.sweep(grid, task.support, text, task.query)
    }


def percent(logits: Tensor, labels: Tensor) -> float:
    """The accuracy of (M, C) logits."""
    return 100 * float((logits.argmax(dim=1) == labels).float().mean())


@dataclass(frozen=True, eq=False)
class Scores:
    """A method's accuracies, averaged over seeds.

    Attributes:
        settings: The V settings, each field with its value.
        datasets: Of the R rows.
        shots: (R,).
        accuracy: (R, V).
        zero_shot: (R,).
    """

    settings: list[dict[str, float]]
    datasets: list[str]
    shots: Tensor
    accuracy: Tensor
    zero_shot: Tensor

    @property
    def lost(self) -> Tensor:
        """(R, V) accuracy lost against the best setting."""
        return self.accuracy.amax(dim=1, keepdim=True) - self.accuracy

    def of(self, dataset: str) -> Tensor:
        """(R,) bool, the rows of a dataset."""
        return torch.tensor([name == dataset for name in self.datasets])

    def best(self, rows: Tensor) -> int:
        """The setting of the minimum mean and worst loss on these rows."""
        lost = self.lost[rows]
        return int((lost.mean(dim=0) + lost.amax(dim=0)).argmin())

    def figures(self, rows: Tensor, setting: int) -> str:
        """Loss on average and at worst, and gain over zero-shot on average and at worst."""
        lost, gain = self.lost[rows, setting], (self.accuracy[:, setting] - self.zero_shot)[rows]
        return f"{lost.mean():6.2f} {lost.max():6.2f} {gain.mean():+7.2f} {gain.min():+7.2f}"


def measure(name: str, stores: list[FeatureStore]) -> Scores:
    """The accuracies of a method at every setting of its grid."""
    rows = defaultdict(list)
    settings: list[dict[str, float]] = []
    for store in stores:
        own = configure(name, logit_scale=store.logit_scale)
        for task in tasks(store, SHOTS, SEEDS):
            text = class_text(store, own, None, task.classes)
            assert text is not None
            found = accuracies(own, task, text, store.logit_scale)
            order = sorted(found, key=lambda m: [getattr(m, field) for field in own.grid])
            settings = [{field: getattr(m, field) for field in own.grid} for m in order]
            says = percent(task.query @ text.features.T, task.labels)
            rows[task.dataset, task.name, task.shots].append([says, *(found[m] for m in order)])
    mean = torch.stack([torch.tensor(seeds).mean(dim=0) for seeds in rows.values()])
    datasets, shots = [row[0] for row in rows], torch.tensor([row[2] for row in rows])
    return Scores(settings, datasets, shots, mean[:, 1:], mean[:, 0])


def report(name: str, scores: Scores) -> None:
    """Print a method's figures."""
    own = scores.settings.index(
        {field: getattr(configure(name), field) for field in scores.settings[0]}
    )
    everything = torch.ones(len(scores.datasets), dtype=torch.bool)
    for setting in dict.fromkeys((own, scores.best(everything))):
        print(f"{name} {scores.settings[setting]}{' (default)' if setting == own else ''}")
        for shots in SHOTS:
            print(f"  {shots:2d} shots {scores.figures(scores.shots == shots, setting)}")
        print(f"  all      {scores.figures(everything, setting)}")
    for dataset in dict.fromkeys(scores.datasets):
        rows = scores.of(dataset)
        chosen = scores.best(~rows)
        print(f"  on {dataset}, chosen without it: {scores.settings[chosen]}")
        print(f"    chosen  {scores.figures(rows, chosen)}")
        print(f"    default {scores.figures(rows, own)}", flush=True)


def main() -> None:
    """Print the figures of every method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--methods", default=NAMES)
    options = parser.parse_args()
    stores = [FeatureStore.open(path) for path in options.stores]
    for name in options.methods.split(","):
        report(name, measure(name, stores))


if __name__ == "__main__":
    main()

"""Learning rates of techniques that train inside CLIP, against zero-shot; never on a test split.

python -m benchmarks.technique_rates [--methods prefix,ssf] [--datasets digits,eurosat] [--times 1]

Draws the few shots of the train split, trains each technique at multiples of its default rate, and
judges it on train images that were not drawn, the same for all. A technique whose steps are a
number per shot takes as many as asked, if these are fewer; published recipes and those that count
passes over the images keep their own. What learns from unlabeled images gets others that are not
judged. Prints a row per technique and dataset: zero-shot's accuracy and that at each rate, in %,
averaged over seeds.
"""

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from cache.datasets.resolving import data_root, find
from cache.datasets.source import Source
from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from fewshot.endtoend.clip import Clip, EndToEnd, Learner
from fewshot.endtoend.experiment import run
from fewshot.endtoend.methods import METHODS, configure
from fewshot.endtoend.parts.peft import PEFTMethod, class_text
from fewshot.endtoend.testing import Queries
from fewshot.sampling import draw

# A mirrored digit is another one, or none, and a small part of one is any.
CROPS: dict[str, dict[str, Any]] = {"digits": {"crop_scale": (0.5, 1.0), "flip": False}}


@dataclass(frozen=True)
class Task:
    """A dataset whose test split is train images that were not drawn.

    Attributes:
        few: The few shots to learn from.
        unlabeled: As many images to learn from as are judged, none of them judged.
    """

    few: Source
    unlabeled: Source

    @classmethod
    def of(cls, source: Source, shots: int, seed: int, judged: int) -> "Task":
        """Draw the few shots and the images to judge."""
        train = source.splits["train"]
        drawn = draw([item.label for item in train], source.classnames, shots=shots, seed=seed)
        few = [train[i] for i in drawn.train]
        rest = [train[i] for i in sorted(set(range(len(train))) - set(drawn.train.tolist()))]
        random.Random(seed).shuffle(rest)
        both = (
            replace(source, splits={"train": seen, "test": rest[:judged]}, sizes={}, content={})
            for seen in (few, rest[judged : 2 * judged])
        )
        return cls(*both)


def zero_shot(encoder: Encoder, source: Source) -> float:
    """The untrained model's accuracy, in %."""
    clip = Clip.of(encoder)
    text = class_text(clip, source.classnames, source.templates)
    learner = Learner({}, clip.logit_scale, lambda: text)
    queries = Queries(source, None, batch_size=64, workers=2, advance=lambda n: None)
    predicted, _ = queries.classify(learner, clip)
    items = source.splits["test"]
    right = sum(int(k) == item.label for k, item in zip(predicted, items, strict=True))
    return 100 * right / len(items)


def accuracy(method: EndToEnd, encoder: Encoder, task: Task, shots: int, seed: int) -> float:
    """The accuracy of what was trained, in %; NaN where the loss became infinite."""
    source = task.unlabeled if method.unsupervised() else task.few
    crops = CROPS.get(source.dataset, {})
    try:
        trained = run(method, encoder, source, **crops, shots=shots, seed=seed)
    except UserError as error:
        if not str(error).startswith("the loss is"):
            raise
        return math.nan
    return 100 * trained.result.accuracy


def settings_of(name: str, shots: int, steps: int, given: Sequence[str]) -> dict[str, Any]:
    """The technique's rate, and so many steps if it would take more and no paper says so."""
    method = METHODS[name]()
    settings = {"lr": asdict(method)["lr"]}
    if isinstance(method, PEFTMethod) and not method.published:
        settings["iterations_per_shot"] = min(method.iterations_per_shot, steps // shots)
    return settings | dict(one.split("=", 1) for one in given)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--datasets", default="digits,eurosat")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--times", default="0.1,1,10", help="multiples of the default rate")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--judged", type=int, default=500, help="images of each dataset")
    asked = parser.parse_args()
    encoder, seeds = load(asked.model), [int(seed) for seed in asked.seeds.split(",")]
    tasks: dict[str, list[Task]] = {}
    for dataset in asked.datasets.split(","):
        source = find(dataset, root=data_root(asked.data_root))
        tasks[dataset] = [Task.of(source, asked.shots, seed, asked.judged) for seed in seeds]
    zero = {d: mean(zero_shot(encoder, task.few) for task in tasks[d]) for d in tasks}
    for name in asked.methods.split(","):
        plain = settings_of(name, asked.shots, asked.steps, asked.set)
        factors = [1.0] if METHODS[name].published else map(float, asked.times.split(","))
        rates = [factor * float(plain["lr"]) for factor in factors]
        for dataset in tasks:
            cells = []
            for rate in rates:
                found = [
                    accuracy(
                        configure(name, plain | {"lr": rate}, seed=seed),
                        encoder, task, asked.shots, seed,
                    )
                    for seed, task in zip(seeds, tasks[dataset], strict=True)
                ]  # fmt: skip
                cells.append(f"{rate:g}: {mean(found):.1f}")
            print(f"{name:18s} {dataset:8s} zero-shot {zero[dataset]:4.1f}  ", *cells, flush=True)


if __name__ == "__main__":
    main()

"""Search for a composition: supernets, one for each fold, and the strategies that ask them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cache.datasets.source import Item, Source
from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.progress import Advance, progress
from fewshot.endtoend.checkpoint import steps_done
from fewshot.endtoend.crops import augmented
from fewshot.endtoend.methods import configure
from fewshot.endtoend.methods.composition import PRIMITIVES, Composition, primitives, with_towers
from fewshot.endtoend.parts.blocks import Towers, towers_of
from fewshot.endtoend.photos import require_images
from fewshot.endtoend.requirements import require_classes
from fewshot.endtoend.search.judged_file import JudgedFile
from fewshot.endtoend.search.space import Candidate, Space
from fewshot.endtoend.search.strategies import Fitness, evolution, random_search
from fewshot.endtoend.search.supernet import Supernet
from fewshot.model_selection.folds import folds
from fewshot.sampling import draw

STRATEGIES = {"evolution": evolution, "random": random_search}
N_FOLDS = 4  # each has a supernet of its own
Tune = Literal["cv", "val", "full-val"]


@dataclass(frozen=True)
class Found:
    """The best composition of a strategy.

    Attributes:
        composition: To be trained.
        fitness: Of the supernets' part, on images that they have not learned from: accuracy, 0 to
            1, and the negative mean cross-entropy.
        trained: How many numbers are trained.
    """

    composition: Composition
    fitness: Fitness
    trained: int


@dataclass(frozen=True)
class Searched:
    """The outcome of a search.

    Attributes:
        found: Strategy -> its best composition.
        without: The fitness of the model without any part.
        n_judged: Images that compositions were judged by.
    """

    found: Mapping[str, Found]
    without: Fitness
    n_judged: int


def search(
    encoder: Encoder,
    source: Source,
    *,
    shots: int,
    seed: int,
    budget: int,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    towers: Towers = "image",
    choices: Sequence[int] = (0, 2, 4, 8, 16),
    tune: Tune = "cv",
    strategies: Sequence[str] = ("evolution", "random"),
    candidates: int = 500,
    crop_scale: tuple[float, float] | None = None,
    flip: bool | None = None,
    workers: int = 2,
) -> Searched:
    """Train supernets, ask them, and return the best of each strategy; no test image is read.

    What was done stays in the folder. The same search continues there and ends as if it had never
    stopped; one with another budget, other strategies or more candidates uses it too.

    Args:
        encoder: The model; not changed.
        source: The dataset.
        shots: K.
        seed: Of all that is random.
        budget: Maximum of trained numbers.
        folder: For checkpoints of the supernets and what they said.
        settings: Of `composition`, as in `configure`; not widths.
        towers: Which of them to change.
        choices: The widths; 0 need not be said.
        tune: How compositions are judged: by folds of the few shots, by min(K, 4) validation
            images per class, or by all of them.
        strategies: Of `STRATEGIES`.
        candidates: How many compositions each strategy judges.
        crop_scale: As in `experiment.run`, like the rest.
        flip: Mirror half of the crops.
        workers: Threads that decode.

    Raises:
        UserError: Too few images, a model without a place for a part, a setting that is the
            search's own, a budget that nothing fits into, or a folder of another search.
    """
    require_classes(source, Composition.name)
    widths = tuple(sorted({0, *choices}))
    names = [f"{tower}_{kind}" for tower in towers_of(towers) for kind in PRIMITIVES[tower]]
    widest = _composition(dict.fromkeys(names, str(widths[-1])), settings or {}, seed)
    splits = list(_splits(source, shots, seed, tune))
    require_images(source, sorted({item.path for s in splits for part in s for item in part}))
    nets = [
        Supernet(
            widest, widths, augmented(widest.plan(shots, len(learned)), crop_scale, flip),
            source, learned, judged, seed, workers, encoder,
        )
        for learned, judged in splits
    ]  # fmt: skip
    _ = [net.learner for net in nets]  # refusals come before the work
    space = Space.of(nets[0], budget)
    about = json.dumps([[net.about, [item.path for item in net.judged]] for net in nets])
    file = JudgedFile(folder / "judged.jsonl", hashlib.sha256(about.encode()).hexdigest())
    for i, net in enumerate(nets, start=1):
        name = "supernet" if len(nets) == 1 else f"supernet {i} of {len(nets)}"
        _train(net, folder / f"supernet-{i}.safetensors", name)
    n_judged = sum(len(net.judged) for net in nets)

    def judge(candidate: Candidate) -> Fitness:
        fitness = file.get(candidate)
        if fitness is None:
            answers = [net.judge(space.widths(candidate)) for net in nets]
            fitness = sum(n for n, _ in answers) / n_judged, -sum(x for _, x in answers) / n_judged
            file.add(candidate, fitness)
        return fitness

    found = {}
    for strategy in strategies:
        with progress(f"{strategy}: compositions", candidates) as advance:

            def shown(candidate: Candidate, advance: Advance = advance) -> Fitness:
                fitness = judge(candidate)
                advance(1)
                return fitness

            best = STRATEGIES[strategy](space, shown, candidates, seed)
        texts = dict.fromkeys(names, "")
        for (name, _), width in space.widths(best).items():
            texts[name] += f",{width}" if texts[name] else str(width)
        composition = _composition(texts, settings or {}, seed)
        found[strategy] = Found(composition, judge(best), space.size(best))
    return Searched(found, judge((0,) * len(space.numbers)), n_judged)


def _composition(widths: Mapping[str, str], settings: Mapping[str, Any], seed: int) -> Composition:
    """The composition of these widths, and of none in the other primitives."""
    for name in settings:
        if name in ("towers", *primitives()):
            raise UserError(f"search chooses {name}; leave it out of --set, or use train")
    method = configure("composition", {**settings, **with_towers(widths)}, seed=seed)
    assert isinstance(method, Composition)
    return method


def _splits(
    source: Source, shots: int, seed: int, tune: Tune
) -> Iterator[tuple[list[Item], list[Item]]]:
    """Images to learn from, and others to judge by; for each fold, or once."""
    train, val = source.splits.get("train", ()), source.splits.get("val", ())
    if tune != "cv" and not val:
        raise UserError(f"{source.dataset} has no val split; use --tune cv")
    if tune == "cv" and shots < 2:
        raise UserError(
            f"--tune cv needs two shots, one to learn from and one to judge by; got {shots}; use "
            "more, or --tune val"
        )
    sample = draw(
        [item.label for item in train], source.classnames, shots=shots, seed=seed,
        val_labels=[item.label for item in val] if tune == "val" else None,
    )  # fmt: skip
    few = [train[row] for row in sample.train]
    if sample.val is not None:
        yield few, [val[row] for row in sample.val]
    elif tune == "full-val":
        yield few, list(val)
    else:
        labels = torch.tensor([item.label for item in few])
        fold = folds(labels, n_folds=min(N_FOLDS, shots), seed=seed).tolist()
        for k in range(max(fold) + 1):
            yield (
                [item for item, of in zip(few, fold, strict=True) if of != k],
                [item for item, of in zip(few, fold, strict=True) if of == k],
            )


def _train(net: Supernet, checkpoint: Path, name: str) -> None:
    """Train a supernet, from its checkpoint on where there is one, and show how far it is."""
    total, done = net.plan.iterations, steps_done(checkpoint)
    with progress(f"{name}: steps", total, done) as advance:
        net.train(checkpoint, lambda step, loss, *_: advance(1, f"loss {loss:.3f}"))

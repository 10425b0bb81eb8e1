"""Several backbones: each encodes the photos once, and the best with its best method is chosen.

The choice is over backbones times methods, judged on the same folds, and `selection.select`
corrects for all of it at once. A pair of backbones is three of them, one for each weight.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cache.datasets.preflight_report import Preflight
from cache.datasets.source import Source
from cache.errors import UserError, count
from cache.extraction.shards import fitting_batch
from cache.location import model_name, pair_names
from cache.models.at_hand import at_hand
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.pair import EVEN, Pair
from cache.store import FeatureStore
from fewshot.automatic.candidates import Candidates
from fewshot.automatic.encoding import Encoding, Say, encode_labeled
from fewshot.automatic.judging import CrossValidation, inputs, judge
from fewshot.model_selection.selection import MethodScore, Selection, select
from fewshot.settling import configured

SMALL = ("tiny", "ViT-B-32/openai", "RN50/openai", "timm:vit_small_patch14_dinov2.lvd142m")
LARGE = (
    "ViT-B-16/openai", "ViT-L-14/openai", "ViT-B-16-SigLIP2/webli",
    "timm:vit_base_patch14_dinov2.lvd142m",
)  # fmt: skip
WEIGHTS = (EVEN, 0.25, 0.75)  # of a pair's first model; each takes as long to judge as a model
# Of each list, the models to choose from and the seconds that one may take to encode all photos.
LISTS = {"quick": (SMALL, 300.0), "best": ((*SMALL, *LARGE), 7200.0)}


@dataclass(frozen=True)
class Backbone:
    """A model that was tried.

    Attributes:
        model: Its name.
        seconds: For each image, measured on the first ones: reading, cropping, encoding.
        score: Of its most accurate method; `behind` is in comparison with the winner.
    """

    model: str
    seconds: float
    score: MethodScore


@dataclass(frozen=True, eq=False)
class Compared:
    """The best backbone, and all that were tried.

    Attributes:
        model: The name of the best.
        store: Its features; of a pair, at the best weight.
        validation: Its methods, of which the best is chosen; corrected for the choice among all.
            Its pending ones are the models still to be tried.
        backbones: All that were compared, the fastest first.
    """

    model: str
    store: FeatureStore
    validation: CrossValidation
    backbones: tuple[Backbone, ...]


@dataclass(frozen=True)
class Machine:
    """Where and how models run, as `cache.models.loading.load` takes it, and where notes go."""

    device: str
    precision: str
    say: Say

    def load(self, model: str) -> tuple[Encoder, ...]:
        """The encoder of that name; the two of a pair."""
        names = pair_names(model) or (model,)
        return tuple(load(one, device=self.device, precision=self.precision) for one in names)


def compare(
    models: Sequence[str],
    machine: Machine,
    report: Preflight,
    asked: Candidates,
    *,
    root: Path,
    workers: int | None = None,
    rehash: bool = False,
    thorough: bool = False,
    seed: int = 1,
) -> Iterator[Compared]:
    """Encode the photos with every model, the fastest first, and choose the model and its method.

    Args:
        models: Names or pairs, or `quick` or `best` alone; see `LISTS`.
        machine: Where they run.
        report: On the labeled photos.
        asked: The methods to try.
        root: The folder of stores.
        workers: Threads that decode images; one per core or so without it.
        rehash: As in `auto`.
        thorough: As in `judge`.
        seed: As in `judge`.

    Yields:
        The first answer, of the fastest model, if others follow; then the last answer.

    Raises:
        UserError: A model cannot be had, or several were named and no class has a second photo to
            compare by.
    """
    source, _ = report.passed(skip_unreadable=True)
    prices = _priced(models, machine, source)
    tried: list[tuple[FeatureStore, CrossValidation]] = []
    groups: Tensor | None = None
    names = sorted(prices, key=prices.__getitem__)
    for number, model in enumerate(names, 1):
        how = Encoding(machine.load(model), root, workers, rehash, machine.say)
        for store in _weighted(encode_labeled(report, how)):
            answers = judge(
                store, asked, *inputs(store), thorough=thorough, seed=seed, groups=groups
            )
            try:
                *_, found = answers
            except UserError as error:
                raise UserError(f"{model}: {error}") from None
            if found.selection is None and len(names) == 1 and isinstance(store, Pair):
                yield Compared(model, store, found, ())
                return
            if found.selection is None:
                raise UserError(
                    "every class has one photo (or near-duplicates of one), so models cannot be "
                    "compared; name one with --model, or add a photo of each class"
                )
            groups = found.groups
            tried.append((store, found))
        if number in (1, len(names)):
            yield choose(tried, prices, seed, pending=names[number:])


def _weighted(store: FeatureStore) -> Sequence[FeatureStore]:
    """The store alone; a pair at each of `WEIGHTS`."""
    return [store.at(weight) for weight in WEIGHTS] if isinstance(store, Pair) else [store]


def choose(
    tried: Sequence[tuple[FeatureStore, CrossValidation]],
    prices: Mapping[str, float],
    seed: int = 1,
    *,
    pending: Sequence[str] = (),
) -> Compared:
    """Choose among all methods on all models.

    Args:
        tried: The features of each, and the methods judged on the folds that all share.
        prices: Model -> seconds for each image.
        seed: Of the resamples that judge the choice.
        pending: The models still to be tried.
    """
    every = [
        replace(one, name=f"{number}\n{one.name}")
        for number, (_, found) in enumerate(tried)
        for one in found.tried
    ]
    first = tried[0][1]
    joint = select(every, first.labels, groups=first.groups, seed=seed)
    scores: list[list[MethodScore]] = [[] for _ in tried]
    best: dict[str, MethodScore] = {}
    for score in joint.scores:  # the best accuracy first
        number, _, method = score.name.partition("\n")
        scores[int(number)].append(replace(score, name=method))
        best.setdefault(tried[int(number)][0].model, scores[int(number)][-1])
    number, _, method = joint.winner.partition("\n")
    store, found = tried[int(number)]
    own = scores[int(number)]
    best[store.model] = next(score for score in own if score.name == method)
    validation = replace(
        found,
        selection=replace(joint, winner=method, scores=tuple(own)),
        method=configured(store, method),
        pending=tuple(pending),
    )
    backbones = [Backbone(model, prices[model], score) for model, score in best.items()]
    backbones.sort(key=lambda one: one.seconds)
    return Compared(store.model, store, validation, tuple(backbones))


def _priced(models: Sequence[str], machine: Machine, source: Source) -> dict[str, float]:
    """Model -> seconds for each image; of a list, those at hand and fast enough."""
    limit = float("inf")
    names = [model_name(model) for model in dict.fromkeys(models)]
    if len(names) == 1 and names[0] in LISTS:
        listed, limit = LISTS[names[0]]
        names = [name for name in listed if at_hand(name)]
    if not names:
        raise UserError("--models must name one model or more, or be quick or best; got none")
    n = sum(map(len, source.splits.values()))
    prices = {}
    for name in names:
        prices[name] = sum(seconds_per_image(one, source) for one in machine.load(name))
        machine.say(
            f"{name}: {1000 * prices[name]:.1f} ms per image, {count(n, 'image')} in about "
            f"{n * prices[name]:.0f} s"
        )
    fastest = min(prices, key=prices.__getitem__)
    kept = {name: s for name, s in prices.items() if n * s <= limit or name == fastest}
    for name in prices.keys() - kept.keys():
        machine.say(f"{name} is left out, as it takes longer than {limit:.0f} s; name it to try it")
    return kept


def seconds_per_image(encoder: Encoder, source: Source) -> float:
    """Read, crop and encode one batch of the first images twice; the second time is measured."""
    size = fitting_batch(encoder)
    paths = [item.path for items in source.splits.values() for item in items][:size]
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        crops = []
        for path in paths:
            try:
                crops.append(encoder.preprocess.center(source.read(path)))
            except OSError:
                continue
        if not crops:
            raise UserError(f"none of the first {count(len(paths), 'image')} can be read")
        batch = [crops[i % len(crops)] for i in range(size)]
        encoder.encode_images(torch.stack(batch))
        seconds = (time.perf_counter() - start) / size
    return seconds


def losses(backbones: Sequence[Backbone], selection: Selection, winner: str) -> list[str]:
    """A sentence for each model that is faster than the winner: what it would lose."""
    own = next(one for one in backbones if one.model == winner)
    sentences = []
    for one in backbones:
        if one.seconds < own.seconds and one is not own:
            lost = 100 * (own.score.accuracy - one.score.accuracy)
            low, high = (100 * end for end in one.score.behind)
            sentences.append(
                f"{one.model} with {one.score.name} takes {1000 * one.seconds:.1f} ms and loses "
                f"{lost:.1f} in 100 of {count(selection.n_images, 'photo')} "
                f"(95 % interval {low:.1f} to {high:.1f})"
            )
    return sentences

"""Train a method on a dataset's few shots, or on unlabeled images, and test it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.datasets.source import Source
from cache.extraction.digests import of_images
from cache.location import default_root, store_path
from cache.models.encoder import Encoder
from cache.store import FeatureStore
from fewshot.endtoend.about import about_training
from fewshot.endtoend.batches import center_features, live_batches, stored_batches
from fewshot.endtoend.class_halves import ClassHalves, beside
from fewshot.endtoend.clip import Clip, EndToEnd, Learner, TrainingPlan
from fewshot.endtoend.crops import augmented, chosen_by_hand, crops_asked, learns_live
from fewshot.endtoend.evolve import evolve
from fewshot.endtoend.finished import finish, finished
from fewshot.endtoend.photos import center_crops, require_images
from fewshot.endtoend.requirements import (
    require_few_shots,
    require_images_of_classes,
    require_published,
    require_same_images,
    require_same_weights,
    require_splits,
)
from fewshot.endtoend.testing import Queries
from fewshot.endtoend.train import Ended, Watch, train
from fewshot.endtoend.training_set import TrainingSet
from fewshot.metrics import accuracy, harmonic_mean
from fewshot.open_set import known_among, knownness, separated
from fewshot.protocol import Asked, Protocol
from fewshot.results.log import Result
from fewshot.results.prediction_files import digest_of_images
from fewshot.run import Run
from fewshot.settling import asked_of
from fewshot.tested import image_digest, result_of


@dataclass(frozen=True, eq=False)
class Trained:
    """The outcome of training.

    Attributes:
        learner: With its parameters as trained.
        clip: The model that it is part of.
        result: What it reached on the test split.
        complaint: A sentence if its loss did not fall, see `LossTrend`; empty if it did.
        again: True if all of it was finished before and read from the checkpoint.
    """

    learner: Learner
    clip: Clip
    result: Result
    complaint: str = ""
    again: bool = False


def run(
    method: EndToEnd,
    encoder: Encoder,
    source: Source,
    protocol: Protocol | None = None,
    *,
    store: FeatureStore | None = None,
    crop_scale: tuple[float, float] | None = None,
    flip: bool | None = None,
    official: bool = False,
    save_memory: bool = False,
    checkpoint: Path | None = None,
    save: Path | None = None,
    workers: int = 2,
    batch_size: int = 64,
    watch: Watch = lambda step, loss, accuracy, rate: None,
    advance: Callable[[int], None] = lambda n: None,
    **asked: Unpack[Asked],
) -> Trained:
    """Draw the few shots, train on them, and only then classify the test split.

    A method that learns from unlabeled images is given all train images instead, by number; no
    label reaches it. With `known`, it is tested as `evaluation.evaluate` tests an open set. In the
    setting base-to-new it learns the base classes and is tested as `new_classes.base_to_new` tests;
    with `synthesize`, it learns from features of the new classes as well.

    With all shots, a class may have no train image: its text takes part in every step as
    that of the others. Steps are as many as for the images that a class has on average.

    A method that leaves the image tower alone learns from the store's features where there is a
    store of the same weights, from a fresh view in each epoch if it has views; without one, and for
    every other method, images are decoded and augmented live.

    Args:
        method: What to train; its field `seed`, if it has one, is the caller's to set.
        encoder: The model; not changed.
        source: The images and their labels.
        protocol: What is asked; the default `Protocol()` without it.
        store: The same dataset's features under the same model.
        crop_scale: Minimum and maximum share of an image that a live crop keeps; the method's own
            without it.
        flip: Mirror half of the live crops; as the method has it without.
        official: Draw the few shots as the method's own authors do, where that is another way, and
            learn from fresh crops: live ones where the store has no views.
        save_memory: Compute activations twice instead of keeping them; see `Clip.save_memory`.
        checkpoint: A file to resume from and to keep up to date. Of a finished run, nothing is
            trained or tested again.
        save: A folder to write the predictions into.
        workers: Threads that decode and augment.
        batch_size: Images per forward pass in testing.
        watch: Called after each training step, as `train.Watch` says.
        advance: Called with the number of test images just classified.
        **asked: Fields of a `Protocol`, such as shots and seed, which take the place of the
            protocol's own.

    Raises:
        UserError: Another task than the method is for, no train or test split, too few images,
            unreadable ones, which are found before training starts, a store of other weights or
            images, or what the method and the loop object to.
    """
    protocol = asked_of(method, protocol, asked)
    if official:
        every = ["shots all"] if protocol.shots == "all" else []
        require_published(method, changed=[*protocol.fixed, *crops_asked(crop_scale, flip), *every])
    method = replace(method, **protocol.fixed)
    require_few_shots(method, protocol)
    source.require_one_label(method.name)
    require_splits(source)
    if store is not None:
        require_same_weights(store, encoder)
        require_same_images(store, source)
    has_val = bool(source.splits.get("val"))
    drawn = TrainingSet.of(method, source, protocol, official and method.val_first)
    paths, labels = drawn.paths, drawn.labels
    names = [source.classnames[k] for k in drawn.classes]
    clip = Clip.of(encoder)
    learner = method.attach(clip, names, source.templates)
    if save_memory:
        clip.save_memory()
    require_images_of_classes(learner, [source.classnames[k] for k in drawn.without_images])
    plan = augmented(method.plan(drawn.mean_shots, len(paths)), crop_scale, flip)
    halves = ClassHalves.of(method, encoder, source, learner, protocol, store)
    n_views = store.split("train").n_views * protocol.views if store else 0
    live = learns_live(on_images=learner.images is not None, n_views=n_views, official=official)
    stored = None if live else store
    values: dict[str, Any] = asdict(method)
    if stored is None:
        values |= {"crop_scale": list(plan.crop_scale), "flip": plan.flip}
    chosen = chosen_by_hand(
        method, live=stored is None, has_val=has_val,
        crop_scale=crop_scale, flip=flip, official=official,
    )  # fmt: skip
    planned = Run.planned(
        method,
        replace(protocol, fixed={**protocol.fixed, **chosen}),
        dataset=source.dataset,
        model=str(encoder.identity["name"]),
        fingerprint=store.fingerprint if store else str(encoder.identity["weights"]),
        shots=drawn.shots,
        fewest=drawn.shots,
        n_views=0 if stored is None else max(1, n_views),
    )
    about = about_training(
        method, plan, encoder, source, names, paths, labels,
        seed=protocol.seed, store=stored, views=protocol.views,
        synthesized=None if halves is None else halves.fingerprint,
    )  # fmt: skip
    before = finished(checkpoint, about, planned)
    if stored is not None:
        batches = stored_batches(stored, drawn.rows, protocol.views)
    else:
        if before is None:
            queried = [item.path for item in source.splits["test"]]
            require_images(source, paths + queried, workers=workers)
        batches = live_batches(learner, encoder, source, paths, plan, protocol.seed, workers)
    start = time.perf_counter()
    if learner.calibrate is not None:
        pixels = center_crops(
            source, paths, encoder.preprocess, batch_size=batch_size, workers=workers
        )
        learner.calibrate(pixels, labels)
    if learner.survey is not None and before is None:
        learner.survey(center_features(encoder, source, paths, stored, batch_size, workers))
    measures: dict[str, float] = {}
    complaint = ""
    if halves is not None and before is None:
        made = halves.synthesized(encoder, source)
        if made is not None:
            learner = beside(learner, made, min(plan.batch_size, len(paths)))
            measures = made.measures
    if learner.search is not None:
        measures = evolve(
            learner, plan, batches, labels, checkpoint=checkpoint, about=about, watch=watch
        )
    else:
        ended = train(
            learner, clip, plan, method.optimizer(learner), batches, labels,
            seed=protocol.seed, checkpoint=checkpoint, about=about, watch=watch,
        )  # fmt: skip
        measures = {**measures, **_measured(ended, clip, plan, trained=before is None)}
        complaint = ended.trend.complaint()
    if before is not None:
        return Trained(learner, clip, before, complaint, again=True)
    trained = time.perf_counter()
    truth = torch.tensor([item.label for item in source.splits["test"]])
    queries = Queries(source, stored, batch_size, workers, advance)
    tested = _test(learner, clip, queries, halves, protocol, drawn.classes, truth)
    result = result_of(
        planned,
        tested.predicted,
        truth[tested.rows],
        source.classnames,
        digest_of_images(source.dataset, truth.numpy(), tested.rows),
        accuracies=tested.accuracies,
        overall=tested.overall,
        save=save,
        hyperparameters={**values, **chosen},
        measures=measures
        | {"trained_parameters": float(sum(p.numel() for p in learner.parameters.values()))},
        text_recipe="live",
        n_support=len(paths),
        n_validation=0,
        fit_seconds=trained - start,
        predict_seconds=time.perf_counter() - trained,
        image_digest=image_digest(stored) if stored else of_images(source, "test")[:16],
    )
    if checkpoint is not None:
        finish(checkpoint, about, result)
    return Trained(learner, clip, result, complaint)


def _measured(ended: Ended, clip: Clip, plan: TrainingPlan, *, trained: bool) -> dict[str, float]:
    """Steps that were skipped in half precision, and the account of private training."""
    measures = {"skipped_steps": float(ended.skipped)} if clip.precision == "fp16" else {}
    return measures | plan.privacy.account() if plan.privacy is not None and trained else measures


class _Tested(NamedTuple):
    """The outcome on the test split.

    Attributes:
        predicted: (m,) class ids.
        rows: (m,) the rows of the test split that count: of an open set, of known classes.
        accuracies: Those of parts of it.
        overall: The accuracy where it is not the share of right predictions.
    """

    predicted: Tensor
    rows: NDArray[np.int64]
    accuracies: dict[str, float]
    overall: float | None


def _test(
    learner: Learner,
    clip: Clip,
    queries: Queries,
    halves: ClassHalves | None,
    protocol: Protocol,
    classes: Sequence[int],
    truth: Tensor,
) -> _Tested:
    """Classify the test split, by halves of the classes or as an open set where that is asked."""
    if halves is not None:
        predicted, rows, accuracies = halves.classify(learner, clip, queries)
        overall = harmonic_mean(accuracies["base"], accuracies["new"])
        return _Tested(predicted, rows, accuracies, overall)
    predicted, sure = queries.classify(
        learner, clip, sureness=lambda logits: knownness(logits, protocol.score, clip.logit_scale)
    )
    predicted = torch.tensor(classes)[predicted]
    if protocol.known is None:
        return _Tested(predicted, np.arange(len(truth)), {}, None)
    ours = known_among(truth, classes, queries.source.dataset)
    rows = np.flatnonzero(ours)
    right = accuracy(predicted[rows], truth[rows])
    accuracies = separated(right, sure.numpy(), ours)
    return _Tested(predicted[rows], rows, accuracies, harmonic_mean(right, accuracies["auroc"]))


def store_of(source: Source, model: str, root: Path | None) -> FeatureStore | None:
    """The store of the source's features under this model, if there is one."""
    path = store_path(root or default_root(), source.dataset, model)
    return FeatureStore.open(path) if path.exists() else None

"""Train a method on a dataset's few shots, or on unlabeled images, and test it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.datasets.source import Source
from cache.location import default_root, store_path
from cache.models.encoder import Encoder
from cache.store import FeatureStore
from fewshot.endtoend.batches import TrainImages, stored_batches
from fewshot.endtoend.class_halves import ClassHalves, beside
from fewshot.endtoend.clip import Clip, EndToEnd, Learner
from fewshot.endtoend.evolve import evolve
from fewshot.endtoend.finished import finish, finished
from fewshot.endtoend.photos import require_images
from fewshot.endtoend.testing import Queries
from fewshot.endtoend.train import Ended, Watch, train
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.endtoend.training_setup import TrainingSetup
from fewshot.metrics import accuracy, harmonic_mean
from fewshot.open_set import known_among, knownness, separated
from fewshot.protocol import Asked, Protocol
from fewshot.results.log import Result
from fewshot.results.prediction_files import digest_of_images
from fewshot.settling import asked_of
from fewshot.tested import result_of


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
    setup = TrainingSetup.of(
        method, protocol, encoder, source, store, crop_scale=crop_scale, flip=flip,
        official=official, save_memory=save_memory,
    )  # fmt: skip
    drawn, clip, plan, stored = setup.drawn, setup.clip, setup.plan, setup.stored
    queries = Queries(source, stored, batch_size, workers, advance)
    before = finished(checkpoint, setup.about, setup.run, queries)
    if before is None and stored is None:
        require_images(source, drawn.paths + queries.paths, workers=workers)
    start = time.perf_counter()
    images = TrainImages(source, drawn.paths, encoder, workers, batch_size)
    learner, measures = _shown(setup, images, again=before is not None)
    batches = images.live(learner, plan, protocol.seed)
    if stored is not None:
        batches = stored_batches(stored, drawn.rows, protocol.views)
    complaint = ""
    if learner.search is not None:
        measures = evolve(
            learner, plan, batches, drawn.labels,
            checkpoint=checkpoint, about=setup.about, watch=watch,
        )  # fmt: skip
    else:
        ended = train(
            learner, clip, plan, setup.method.optimizer(learner), batches, drawn.labels,
            seed=protocol.seed, checkpoint=checkpoint, about=setup.about, watch=watch,
        )  # fmt: skip
        measures |= measured(ended, clip, plan, trained=before is None)
        complaint = ended.trend.complaint()
    if before is not None:
        return Trained(learner, clip, before, complaint, again=True)
    trained = time.perf_counter()
    truth = torch.tensor([item.label for item in source.splits["test"]])
    tested = _test(learner, clip, queries, setup.halves, protocol, drawn.classes, truth)
    result = result_of(
        setup.run,
        tested.predicted,
        truth[tested.rows],
        source.classnames,
        digest_of_images(source.dataset, truth.numpy(), tested.rows),
        accuracies=tested.accuracies,
        overall=tested.overall,
        save=save,
        hyperparameters=setup.settings,
        measures=measures | learner.size,
        text_recipe="live",
        n_support=len(drawn.paths),
        n_validation=0,
        fit_seconds=trained - start,
        predict_seconds=time.perf_counter() - trained,
        image_digest=queries.image_digest,
    )
    if checkpoint is not None:
        finish(checkpoint, setup.about, result)
    return Trained(learner, clip, result, complaint)


def _shown(
    setup: TrainingSetup, images: TrainImages, *, again: bool
) -> tuple[Learner, dict[str, float]]:
    """The learner after what it is shown before training, and figures of what was synthesized.

    Of a run that is finished, only what is no part of its checkpoint is shown again.
    """
    learner, halves, stored = setup.learner, setup.halves, setup.stored
    if learner.calibrate is not None:
        learner.calibrate(images.centers(), setup.drawn.labels)
    if again:
        return learner, {}
    if learner.survey is not None:
        known = None if stored is None else torch.from_numpy(stored.features("train"))
        learner.survey(images.center_features() if known is None else known)
    made = None if halves is None else halves.synthesized(images.encoder, images.source)
    if made is None:
        return learner, {}
    size = min(setup.plan.batch_size, len(images.paths))
    return beside(learner, made, size), dict(made.measures)


def measured(ended: Ended, clip: Clip, plan: TrainingPlan, *, trained: bool) -> dict[str, float]:
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

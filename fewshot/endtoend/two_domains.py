"""Train on a labeled source, adapt to a target's unlabeled images, and test on the target.

Stage 2 is a function that is given the target and the model alone: no image, path or label of the
source is within its reach.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.datasets.source import Source
from cache.models.encoder import Encoder
from fewshot.domain_adaptation import Judgment, judge
from fewshot.endtoend.batches import TrainImages
from fewshot.endtoend.checkpoint import steps_done
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.experiment import Trained, measured
from fewshot.endtoend.finished import finish, finished
from fewshot.endtoend.methods.live_two_stage import LiveTwoStage
from fewshot.endtoend.photos import require_images
from fewshot.endtoend.testing import Queries
from fewshot.endtoend.train import Ended, Watch, train
from fewshot.endtoend.training_setup import settings_of
from fewshot.endtoend.two_domain_setup import TwoDomainSetup
from fewshot.open_set import certainty
from fewshot.protocol import Asked, Protocol
from fewshot.results.prediction_files import digest_of_images
from fewshot.settling import asked_of
from fewshot.tested import result_of

WatchStage = Callable[[int], Watch]  # 1 or 2 -> what is called after each of its steps


def source_checkpoint(checkpoint: Path) -> Path:
    """The checkpoint of stage 1, beside that of stage 2."""
    return checkpoint.with_stem(f"{checkpoint.stem}-source")


def run_two_domains(
    method: LiveTwoStage,
    encoder: Encoder,
    source: Source,
    target: Source,
    protocol: Protocol | None = None,
    *,
    crop_scale: tuple[float, float] | None = None,
    flip: bool | None = None,
    save_memory: bool = False,
    checkpoint: Path | None = None,
    save: Path | None = None,
    workers: int = 2,
    batch_size: int = 64,
    watch: WatchStage = lambda stage: lambda step, loss, accuracy, rate: None,
    advance: Callable[[int], None] = lambda n: None,
    **asked: Unpack[Asked],
) -> Trained:
    """Learn from the source's labels, adapt to the target's train images, test on the target.

    An image is unknown where the certainty is below the protocol's threshold, if the target has
    classes of its own, by their names. The last step counts; no label of the target has a say.

    Args:
        method: What to train.
        encoder: The model; not changed.
        source: The labeled dataset.
        target: The other one.
        protocol: What is asked; the default `Protocol()` without it.
        crop_scale: As in `experiment.run`, like the rest.
        flip: Mirror half of the live crops.
        save_memory: Compute activations twice instead of keeping them.
        checkpoint: Of stage 2; stage 1 has one beside it, and is not trained again where that is
            finished.
        save: A folder to write the predictions into.
        workers: Threads that decode and augment.
        batch_size: Images per forward pass without gradients.
        watch: Makes of a stage's number what is called after each of its steps.
        advance: Called with the number of test images just classified.
        **asked: Fields of a `Protocol`, which take the place of the protocol's own.

    Raises:
        UserError: No class in common, a split or images are missing, or what the loop objects to.
    """
    given = asked_of(method, protocol, {**asked, "setting": "domain-adaptation"})
    setup = TwoDomainSetup.of(
        method, given, encoder, source, target,
        crop_scale=crop_scale, flip=flip, save_memory=save_memory,
    )  # fmt: skip
    method, drawn, clip, plan = setup.method, setup.drawn, setup.clip, setup.plan
    queries = Queries(target, None, batch_size, workers, advance)
    before = finished(checkpoint, setup.about, setup.run, queries)
    start = time.perf_counter()
    of_source = None if checkpoint is None else source_checkpoint(checkpoint)
    if before is None:
        require_images(target, setup.paths + queries.paths, workers=workers)
        if of_source is None or steps_done(of_source) < plan.iterations:
            require_images(source, drawn.paths, workers=workers)
    labeled = TrainImages(source, drawn.paths, encoder, workers, batch_size)
    stage_1 = train(
        setup.learner, clip, plan, method.optimizer(setup.learner),
        labeled.live(setup.learner, plan, given.seed), drawn.labels,
        seed=given.seed, checkpoint=of_source, about=setup.about_source, watch=watch(1),
    )  # fmt: skip
    moving, stage_2 = adapt_images(
        method, clip, setup.learner, TrainImages(target, setup.paths, encoder, workers, batch_size),
        setup.unknown, crops=(plan.crop_scale, plan.flip), seed=given.seed,
        checkpoint=checkpoint, about=setup.about, watch=watch(2),
    )  # fmt: skip
    final = replace(moving, parameters=setup.learner.parameters)
    complaint = stage_1.trend.complaint()
    if before is not None:
        return Trained(final, clip, before, complaint, again=True)
    trained = time.perf_counter()
    judged = _test(moving, clip, queries, given.threshold, source)
    skipped = Ended(stage_1.skipped + stage_2.skipped, stage_2.trend)
    result = result_of(
        setup.run,
        judged.predicted,
        judged.labels,
        judged.classnames,
        digest_of_images(target.dataset, _labels(target), np.arange(len(queries.paths))),
        accuracies=judged.accuracies,
        overall=judged.overall,
        save=save,
        hyperparameters=settings_of(method, plan, setup.chosen),
        measures=measured(skipped, clip, plan, trained=True) | setup.learner.size,
        text_recipe="live",
        n_support=len(drawn.paths) + len(setup.paths),
        n_validation=0,
        fit_seconds=trained - start,
        predict_seconds=time.perf_counter() - trained,
        image_digest=queries.image_digest,
    )
    if checkpoint is not None:
        finish(checkpoint, setup.about, result)
    return Trained(final, clip, result, complaint)


def _test(
    learner: Learner, clip: Clip, queries: Queries, threshold: float, learned: Source
) -> Judgment:
    """The target's test images, of which those of low certainty are taken for unknown.

    Args:
        learner: What was trained.
        clip: The model that it is part of.
        queries: The target's test images.
        threshold: The certainty below which an image is unknown.
        learned: The source.
    """
    predicted, certain = queries.classify(
        learner, clip, sureness=lambda logits: certainty(logits.double())
    )
    target = queries.source
    return judge(
        predicted, certain, threshold,
        learned.classnames, target.classnames, _labels(target), target.dataset,
    )  # fmt: skip


def _labels(target: Source) -> NDArray[np.int64]:
    """(M,) labels of the test split."""
    return np.array([item.label for item in target.splits["test"]])


def adapt_images(
    method: LiveTwoStage,
    clip: Clip,
    learned: Learner,
    images: TrainImages,
    unknown: bool,
    *,
    crops: tuple[tuple[float, float], bool],
    seed: int,
    checkpoint: Path | None,
    about: str,
    watch: Watch,
) -> tuple[Learner, Ended]:
    """Stage 2: move what was learned to the target's images, of which it has paths and no label.

    Args:
        method: What to train.
        clip: The model that stage 1 trained; moved.
        learned: Its learner.
        images: U of the target.
        unknown: True where some may be of classes that were not learned.
        crops: Scale and mirroring of the crops.
        seed: Random seed for order and crops.
        checkpoint: A file to resume from.
        about: What is trained, as text.
        watch: Called after each step.
    """
    n = len(images.paths)

    @torch.no_grad()
    def look() -> Tensor:
        """(U, D) features that the learner has of the center crops, as it is."""
        assert moving.images is not None
        with clip.autocast():
            pixels = (moving.images(part.to(clip.device)) for part in images.centers())
            return torch.cat([features.float().cpu() for features in pixels])

    moving = method.adapted(clip, learned, n, look, unknown)
    scale, flip = crops
    plan = replace(method.adapting_plan(n), crop_scale=scale, flip=flip)
    ended = train(
        moving, clip, plan, method.optimizer(moving), images.live(moving, plan, seed),
        torch.arange(n), seed=seed, checkpoint=checkpoint, about=about, watch=watch,
    )  # fmt: skip
    return moving, ended

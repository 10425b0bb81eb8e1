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
from torch import Tensor

from cache.datasets.source import Source
from cache.models.encoder import Encoder
from fewshot.domain_adaptation import judge, relation
from fewshot.endtoend.about import about_training
from fewshot.endtoend.batches import TrainImages
from fewshot.endtoend.checkpoint import steps_done
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.crops import augmented, chosen_by_hand
from fewshot.endtoend.experiment import Trained, measured
from fewshot.endtoend.finished import finish, finished
from fewshot.endtoend.methods.live_two_stage import LiveTwoStage
from fewshot.endtoend.photos import require_images
from fewshot.endtoend.requirements import require_classes, require_splits
from fewshot.endtoend.testing import Queries
from fewshot.endtoend.train import Ended, Watch, train
from fewshot.endtoend.training_set import TrainingSet
from fewshot.endtoend.training_setup import settings_of
from fewshot.open_set import certainty
from fewshot.protocol import Asked, Protocol
from fewshot.results.prediction_files import digest_of_images
from fewshot.run import Run
from fewshot.settling import asked_of
from fewshot.support import unlabeled
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
    method = replace(method, **given.fixed)
    kind = relation(source, target)
    for one in (source, target):
        require_classes(one, method.name)
        require_splits(one)
    drawn = TrainingSet.of(method, source, given, val_first=False)
    paths = [item.path for item in target.splits["train"]]
    clip = Clip.of(encoder)
    learner = method.attach(clip, source.classnames, source.templates)
    if save_memory:
        clip.save_memory()
    plan = augmented(method.plan(drawn.shots, len(drawn.paths)), crop_scale, flip)
    chosen = chosen_by_hand(
        method, live=True, has_val=False, crop_scale=crop_scale, flip=flip, official=False
    )
    with_crops = replace(given, fixed={**given.fixed, **chosen})
    planned = _run_of(method, with_crops, encoder, source, target, drawn.shots)
    numbers = torch.arange(len(paths))
    first = about_training(
        method, plan, encoder, source, source.classnames, drawn.paths, drawn.labels,
        seed=given.seed, contents=False,
    )  # fmt: skip
    about = first + about_training(
        method, plan, encoder, target, target.classnames, paths, numbers, seed=given.seed
    )
    queries = Queries(target, None, batch_size, workers, advance)
    before = finished(checkpoint, about, planned, queries)
    start = time.perf_counter()
    of_source = None if checkpoint is None else source_checkpoint(checkpoint)
    if before is None:
        require_images(target, paths + queries.paths, workers=workers)
        if of_source is None or steps_done(of_source) < plan.iterations:
            require_images(source, drawn.paths, workers=workers)
    unlabeled(numbers, method.name)
    labeled = TrainImages(source, drawn.paths, encoder, workers, batch_size)
    stage_1 = train(
        learner, clip, plan, method.optimizer(learner),
        labeled.live(learner, plan, given.seed), drawn.labels,
        seed=given.seed, checkpoint=of_source, about=first, watch=watch(1),
    )  # fmt: skip
    moving, stage_2 = adapt_images(
        method, clip, learner, TrainImages(target, paths, encoder, workers, batch_size),
        kind in ("open", "universal"), crops=(plan.crop_scale, plan.flip), seed=given.seed,
        checkpoint=checkpoint, about=about, watch=watch(2),
    )  # fmt: skip
    final = replace(moving, parameters=learner.parameters)
    complaint = stage_1.trend.complaint()
    if before is not None:
        return Trained(final, clip, before, complaint, again=True)
    trained = time.perf_counter()
    predicted, certain = queries.classify(
        moving, clip, sureness=lambda logits: certainty(logits.double())
    )
    labels = np.array([item.label for item in target.splits["test"]])
    judged = judge(
        predicted, certain, given.threshold,
        source.classnames, target.classnames, labels, target.dataset,
    )  # fmt: skip
    skipped = Ended(stage_1.skipped + stage_2.skipped, stage_2.trend)
    result = result_of(
        planned,
        judged.predicted,
        judged.labels,
        judged.classnames,
        digest_of_images(target.dataset, labels, np.arange(len(labels))),
        accuracies=judged.accuracies,
        overall=judged.overall,
        save=save,
        hyperparameters=settings_of(method, plan, chosen),
        measures=measured(skipped, clip, plan, trained=True) | learner.size,
        text_recipe="live",
        n_support=len(drawn.paths) + len(paths),
        n_validation=0,
        fit_seconds=trained - start,
        predict_seconds=time.perf_counter() - trained,
        image_digest=queries.image_digest,
    )  # fmt: skip
    if checkpoint is not None:
        finish(checkpoint, about, result)
    return Trained(final, clip, result, complaint)


def _run_of(
    method: LiveTwoStage,
    protocol: Protocol,
    encoder: Encoder,
    source: Source,
    target: Source,
    shots: int,
) -> Run:
    """The run that the result will be of."""
    return Run.planned(
        method,
        protocol,
        dataset=target.dataset,
        model=str(encoder.identity["name"]),
        fingerprint=str(encoder.identity["weights"]),
        fitted_on=source.dataset,
        shots=shots,
        fewest=shots,
        n_views=0,
    )


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

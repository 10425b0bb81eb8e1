"""Train on a labeled source, adapt to a target's unlabeled images, and test on the target.

Stage 2 is a function that is given the target and the model alone: no image, path or label of the
source is within its reach.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from cache.datasets.source import Source
from cache.models.encoder import Encoder
from fewshot.domain_adaptation import judge, relation
from fewshot.endtoend.about import about_training
from fewshot.endtoend.batches import live_batches
from fewshot.endtoend.checkpoint import steps_done
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.crops import augmented, chosen_by_hand
from fewshot.endtoend.experiment import Trained
from fewshot.endtoend.finished import finish, finished
from fewshot.endtoend.methods.live_two_stage import LiveTwoStage
from fewshot.endtoend.photos import center_crops, require_images
from fewshot.endtoend.requirements import require_splits
from fewshot.endtoend.testing import Queries
from fewshot.endtoend.train import Watch, train
from fewshot.endtoend.training_set import TrainingSet
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
        one.require_one_label(method.name)
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
    planned = Run.planned(
        method,
        replace(given, fixed={**given.fixed, **chosen}),
        dataset=target.dataset,
        model=str(encoder.identity["name"]),
        fingerprint=str(encoder.identity["weights"]),
        fitted_on=source.dataset,
        shots=drawn.shots,
        fewest=drawn.shots,
        n_views=0,
    )
    names, numbers = list(source.classnames), torch.arange(len(paths))
    first = about_training(
        method, plan, encoder, source, names, drawn.paths, drawn.labels, seed=given.seed
    )
    about = first + about_training(
        method, plan, encoder, target, list(target.classnames), paths, numbers, seed=given.seed
    )
    before = finished(checkpoint, about, planned)
    start = time.perf_counter()
    of_source = None if checkpoint is None else source_checkpoint(checkpoint)
    if before is None:
        tested = [item.path for item in target.splits["test"]]
        require_images(target, paths + tested, workers=workers)
        if of_source is None or steps_done(of_source) < plan.iterations:
            require_images(source, drawn.paths, workers=workers)
    unlabeled(numbers, method.name)
    train(
        learner, clip, plan, method.optimizer(learner),
        live_batches(learner, encoder, source, drawn.paths, plan, given.seed, workers),
        drawn.labels,
        seed=given.seed, checkpoint=of_source, about=first, watch=watch(1),
    )  # fmt: skip

    def look(now: Learner) -> Tensor:
        assert now.images is not None
        pixels = center_crops(
            target, paths, encoder.preprocess, batch_size=batch_size, workers=workers
        )
        with torch.no_grad(), clip.autocast():
            return torch.cat([now.images(part.to(clip.device)).float().cpu() for part in pixels])

    moving = adapt_images(
        method, clip, learner, target, paths, look, kind in ("open", "universal"),
        crops=(plan.crop_scale, plan.flip), encoder=encoder, seed=given.seed, workers=workers,
        checkpoint=checkpoint, about=about, watch=watch(2),
    )  # fmt: skip
    final = replace(moving, parameters=learner.parameters)
    if before is not None:
        return Trained(final, clip, before, again=True)
    trained = time.perf_counter()
    queries = Queries(target, None, batch_size, workers, advance)
    predicted, certain = queries.classify(
        moving, clip, sureness=lambda logits: certainty(logits.double())
    )
    labels = np.array([item.label for item in target.splits["test"]])
    judged = judge(
        predicted, certain, given.threshold,
        source.classnames, target.classnames, labels, target.dataset,
    )  # fmt: skip
    result = result_of(
        planned,
        judged.predicted,
        judged.labels,
        judged.classnames,
        digest_of_images(target.dataset, labels, np.arange(len(labels))),
        accuracies=judged.accuracies,
        overall=judged.overall,
        save=save,
        hyperparameters={
            **asdict(method), "crop_scale": list(plan.crop_scale), "flip": plan.flip, **chosen
        },
        measures={
            "trained_parameters": float(sum(p.numel() for p in learner.parameters.values()))
        },
        text_recipe="live",
        n_support=len(drawn.paths) + len(paths),
        n_validation=0,
        fit_seconds=trained - start,
        predict_seconds=time.perf_counter() - trained,
    )  # fmt: skip
    if checkpoint is not None:
        finish(checkpoint, about, result)
    return Trained(final, clip, result)


def adapt_images(
    method: LiveTwoStage,
    clip: Clip,
    learned: Learner,
    target: Source,
    paths: list[str],
    look: Callable[[Learner], Tensor],
    unknown: bool,
    *,
    crops: tuple[tuple[float, float], bool],
    encoder: Encoder,
    seed: int,
    workers: int,
    checkpoint: Path | None,
    about: str,
    watch: Watch,
) -> Learner:
    """Stage 2: move what was learned to the target's images, of which it has paths and no label.

    Args:
        method: What to train.
        clip: The model that stage 1 trained; moved.
        learned: Its learner.
        target: The dataset of the images.
        paths: U of them.
        look: Returns (U, D) features that a learner has of these images' center crops.
        unknown: True where some may be of classes that were not learned.
        crops: Scale and mirroring of the crops.
        encoder: Whose preprocessing makes them.
        seed: Random seed for order and crops.
        workers: Threads that decode.
        checkpoint: A file to resume from.
        about: What is trained, as text.
        watch: Called after each step.
    """
    moving = method.adapted(clip, learned, len(paths), lambda: look(moving), unknown)
    scale, flip = crops
    plan = replace(method.adapting_plan(len(paths)), crop_scale=scale, flip=flip)
    train(
        moving, clip, plan, method.optimizer(moving),
        live_batches(moving, encoder, target, paths, plan, seed, workers),
        torch.arange(len(paths)),
        seed=seed, checkpoint=checkpoint, about=about, watch=watch,
    )  # fmt: skip
    return moving

"""`train --source`: train on one dataset, adapt to the images of another, and test there."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import UserError, count
from fewshot.commands.train_work import said_of_computing, start_or_continue

if TYPE_CHECKING:
    from cache.datasets.source import Source
    from fewshot.endtoend.clip import EndToEnd
    from fewshot.endtoend.experiment import Trained
    from fewshot.endtoend.train import Watch
    from fewshot.results.loggers import RunLogger


def train_across(
    method: "EndToEnd",
    source: "Source",
    target: "Source",
    *,
    model: str,
    shots: int,
    seed: int,
    fixed: Sequence[str],
    threshold: float,
    device: str,
    precision: str,
    crop_scale: tuple[float, float] | None,
    flip: bool | None,
    save_memory: bool,
    out: Path,
    resume: bool,
    workers: int,
    logger: "RunLogger",
) -> tuple["Trained", Path]:
    """Train in both stages, each with its own progress; what came of it, and the checkpoint.

    Args:
        method: The method, with what is set of it.
        source: The labeled dataset.
        target: The other one.
        model: The model's name.
        shots: K of the source.
        seed: Random seed for all of it.
        fixed: Names of the settings that are given.
        threshold: Certainty below which an image is of no class of the source.
        device: Where to run.
        precision: Of the model.
        crop_scale: Minimum and maximum share of an image that a crop keeps; None for the method's.
        flip: Mirror half of the crops; None for the method's.
        save_memory: Compute activations twice instead of keeping them.
        out: Folder of the checkpoints.
        resume: Continue from them.
        workers: Threads that decode.
        logger: Gets the losses of both stages, and the result.

    Raises:
        UserError: Another method than two-stage, an unfinished run without `resume`, or what the
            training objects to.
    """
    from cache.models.loading import load
    from fewshot.endtoend.display import shown
    from fewshot.endtoend.finished import checkpoint_path
    from fewshot.endtoend.methods.live_two_stage import LiveTwoStage
    from fewshot.endtoend.two_domains import run_two_domains, source_checkpoint

    if not isinstance(method, LiveTwoStage):
        raise UserError(f"{method.name} adapts to no other dataset; --source is for two-stage")
    checkpoint = checkpoint_path(
        out, method, target, model, shots, seed, source.dataset, crop_scale, flip, threshold,
        *said_of_computing(device, precision),
    )  # fmt: skip
    start_or_continue(checkpoint, method, source_checkpoint(checkpoint), resume=resume)
    n_labeled, n_target = shots * len(source.classnames), len(target.splits.get("train", ()))
    plans = {
        1: (source.dataset, method.plan(shots, n_labeled)),
        2: (target.dataset, method.adapting_plan(n_target)),
    }
    n_test = len(target.splits.get("test", ()))
    encoder = load(model, device=device, precision=precision)
    tested: list[Callable[[int], None]] = []
    pair = f"{source.dataset} to {target.dataset}"
    name = f"{method.name} {pair} {model} {count(shots, 'shot')}, seed {seed}"
    with logger.run(name), contextlib.ExitStack() as stack:

        def stage(number: int) -> "Watch":
            dataset, plan = plans[number]
            stack.close()  # one progress at a time
            bars = shown(f"{method.name} on {dataset}", plan.iterations, n_test)
            watch, advance = stack.enter_context(bars)
            tested[:] = [advance]
            return logger.watching(watch, f"stage {number}/")

        trained = run_two_domains(
            method,
            encoder,
            source,
            target,
            shots=shots,
            seed=seed,
            fixed=fixed,
            threshold=threshold,
            crop_scale=crop_scale,
            flip=flip,
            save_memory=save_memory,
            checkpoint=checkpoint,
            workers=workers,
            watch=stage,
            advance=lambda n: tested[0](n),
        )
        logger.result(trained.result)
    return trained, checkpoint

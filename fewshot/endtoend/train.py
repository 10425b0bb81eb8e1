"""The one loop of the end-to-end path, and checkpoints from which it continues bit for bit.

Everything random in step s is a function of the seed and s alone: the batch, the crops and the
dropout. So a run that was killed and resumed reaches the same parameters as one that was not.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from cache.errors import UserError
from fewshot.endtoend.checkpoint import load_checkpoint, save_checkpoint
from fewshot.endtoend.clip import Clip, Learner, TrainingPlan
from fewshot.endtoend.interruption import interrupted_later
from fewshot.endtoend.loss_scale import LossScale
from fewshot.endtoend.loss_trend import LossTrend
from fewshot.endtoend.privacy import private_gradients
from fewshot.parts.memory import memory_refused
from fewshot.training import step_seed

Batches = Callable[[Tensor, int], Tensor]  # rows (B,), epoch -> pixels (B, 3, H, W) or (B, D)
# Step, loss, accuracy on the batch and learning rate. The accuracy is NaN where the images have no
# labels, and the rate where no gradient is followed.
Watch = Callable[[int, float, float, float], None]


@dataclass(frozen=True, eq=False)
class Ended:
    """The outcome of a training beside the parameters.

    Attributes:
        skipped: Steps that were skipped, since gradients overflowed float16.
        trend: Of the loss.
    """

    skipped: int
    trend: LossTrend


def train(
    learner: Learner,
    clip: Clip,
    plan: TrainingPlan,
    optimizer: Optimizer,
    batches: Batches,
    labels: Tensor,
    *,
    seed: int,
    checkpoint: Path | None = None,
    about: str = "",
    every: float = 30.0,
    watch: Watch = lambda step, loss, accuracy, rate: None,
) -> Ended:
    """Train the learner's parameters in place.

    Args:
        learner: What to train.
        clip: The model it was put into.
        plan: How.
        optimizer: Holds the learner's parameters; its learning rate is the plan's.
        batches: The images, by row of `labels`.
        labels: (N,) class ids; the images' numbers where they have none.
        seed: Of all that is random.
        checkpoint: A file to resume from if it is there, written again and again; removed by no
            one here. Without it nothing is written.
        about: What is trained, as text; a checkpoint of anything else is refused.
        every: Seconds between two checkpoints.
        watch: Called after each step.

    Raises:
        UserError: The checkpoint is another run's or damaged, or the loss is no longer finite.
        KeyboardInterrupt: Ctrl-C was pressed; the checkpoint is of the step before.
    """
    n = len(labels)
    size = min(plan.batch_size, n)
    steps = n // size if plan.drop_last else math.ceil(n / size)
    scaler = LossScale(clip.device.type, enabled=clip.precision == "fp16")
    averages = {}
    if plan.epoch_shares:
        averages = {k: torch.zeros_like(v.detach()) for k, v in learner.parameters.items()}
    trend = LossTrend(plan.iterations)
    first = 0
    if checkpoint is not None and checkpoint.exists():
        first = load_checkpoint(checkpoint, about, learner, optimizer, scaler, averages, trend)
    saved = time.monotonic()

    def order(epoch: int) -> Tensor:
        return _order(n, seed, epoch, labels if plan.balanced else None)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, at = divmod(step, steps)
        if plan.privacy is None:
            rows = order(epoch)[at * size : (at + 1) * size]
        else:
            rows = plan.privacy.rows(seed, step)
        given = batches(rows, epoch) if len(rows) else torch.empty(0)
        # A GPU copies from pinned memory while it computes.
        return given.pin_memory() if clip.device.type == "cuda" else given, labels[rows]

    def loss_of(given: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        return learner.loss(given if learner.images is None else learner.images(given), truth)

    with interrupted_later() as stop:
        for step, (given, truth) in _one_ahead(batch, range(first, plan.iterations)):
            if learner.stage is not None:
                learner.stage(step, plan.iterations)
            rate = plan.schedule(step // steps, step / plan.iterations)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_share", 1.0)
            given = given.to(clip.device, non_blocking=True)
            truth = truth.to(clip.device)
            optimizer.zero_grad()
            with _enough_memory(step), _random(seed, step, clip.device), _training(learner):
                with clip.autocast():
                    if plan.privacy is None:
                        loss, logits = loss_of(given, truth)
                    else:
                        loss, logits = private_gradients(
                            clip.model, loss_of, learner.parameters, given, truth,
                            clip=plan.privacy.clip, noise=plan.privacy.noise, expected=size,
                            draw=plan.privacy.draw(seed, step, 1),
                        )  # fmt: skip
                if plan.privacy is None:
                    # Within, for a checkpointed tower runs here again, and must drop the same.
                    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                # After that, since a GPU is waited for to look at the loss.
                if not torch.isfinite(loss):
                    raise UserError(
                        f"the loss is {float(loss.detach())} in step {step + 1} of "
                        f"{plan.iterations}; use a smaller lr, or --precision bf16 or fp32"
                    )
            scaler.step(optimizer)
            scaler.update()
            if (step + 1) % steps == 0:
                for name, average in averages.items():
                    parameter = learner.parameters[name].detach()
                    average.add_(parameter, alpha=plan.epoch_shares[step // steps])
            right = math.nan
            if learner.survey is None:
                right = float((logits.argmax(dim=1) == truth).float().mean())
            trend.add(step + 1, float(loss.detach()))
            watch(step + 1, float(loss.detach()), right, rate)
            if checkpoint is not None and (stop() or time.monotonic() - saved > every):
                save_checkpoint(
                    checkpoint, about, step + 1, learner, optimizer, scaler, averages, trend
                )
                saved = time.monotonic()
            if stop():
                raise KeyboardInterrupt
    with torch.no_grad():
        for name, average in averages.items():
            learner.parameters[name].copy_(average)
    if checkpoint is not None:
        save_checkpoint(
            checkpoint, about, plan.iterations, learner, optimizer, scaler, averages, trend
        )
    return Ended(scaler.skipped, trend)


def _one_ahead(
    batch: Callable[[int], tuple[Tensor, Tensor]], steps: range
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Each step with its batch, while a thread prepares the next step's."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(batch, steps[0]) if steps else None
        for step in steps:
            assert coming is not None
            here = coming.result()
            if step + 1 in steps:
                coming = pool.submit(batch, step + 1)
            yield step, here


def _order(n: int, seed: int, epoch: int, balanced_by: Tensor | None = None) -> Tensor:
    """(n,) a permutation that depends on seed and epoch alone.

    Or, with labels (n,) to balance by, draws with replacement, of every class alike often.
    """
    generator = torch.Generator().manual_seed(step_seed(seed, epoch))
    if balanced_by is not None:
        weights = 1 / torch.bincount(balanced_by)[balanced_by].double()
        return torch.multinomial(weights, n, replacement=True, generator=generator)
    return torch.randperm(n, generator=generator)


@contextlib.contextmanager
def _enough_memory(step: int) -> Iterator[None]:
    """Say in one line what takes less memory if there is too little within."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        refused = memory_refused(error)
        if refused is None:
            raise
        raise UserError(
            f"{refused}, in step {step + 1}; --save-memory needs less, and so do "
            "--set text_chunk=64 where the text tower runs in every step and a smaller "
            "--set batch_size"
        ) from None


@contextlib.contextmanager
def _random(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Dropout's random numbers from the seed and the step, the global generators left alone."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(step_seed(seed, step))
        yield


@contextlib.contextmanager
def _training(learner: Learner) -> Iterator[None]:
    """Dropout on, within."""
    for module in learner.modules:
        module.train()
    try:
        yield
    finally:
        for module in learner.modules:
            module.eval()

"""The one loop of the end-to-end path, and checkpoints from which it continues bit for bit.

Everything random in step s is a function of the seed and s alone: the batch, the crops and the
dropout. So a run that was killed and resumed reaches the same parameters as one that was not.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from cache.errors import UserError
from fewshot.endtoend.checkpoint import State
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.interruption import interrupted_later
from fewshot.endtoend.loss_scale import LossScale
from fewshot.endtoend.loss_trend import LossTrend
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.endtoend.training_steps import Batches, TrainingSteps
from fewshot.parts.memory import memory_refused
from fewshot.training import step_seed

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
    averages = {}
    if plan.epoch_shares:
        averages = {k: torch.zeros_like(v.detach()) for k, v in learner.parameters.items()}
    scaler = LossScale(clip.device.type, enabled=clip.precision == "fp16")
    state = State(learner, optimizer, scaler, LossTrend(plan.iterations), averages)
    first = 0
    if checkpoint is not None and checkpoint.exists():
        first = state.load(checkpoint, about)
    steps = TrainingSteps(learner, clip, plan, batches, labels, seed)
    saved = time.monotonic()
    with interrupted_later() as stop:
        for step, (given, truth) in _one_ahead(steps.batch, range(first, plan.iterations)):
            rate = steps.set_rate(step, optimizer)
            optimizer.zero_grad()
            # Gradients within, too: a checkpointed tower runs again there, and must drop the same.
            with _enough_memory(step), _random(seed, step, clip.device), _training(learner):
                loss, right = steps.gradients(step, given, truth, scaler)
            scaler.step(optimizer)
            scaler.update()
            steps.average(step, averages)
            state.trend.add(step + 1, loss)
            watch(step + 1, loss, right, rate)
            if checkpoint is not None and (stop() or time.monotonic() - saved > every):
                state.save(checkpoint, about, step + 1)
                saved = time.monotonic()
            if stop():
                raise KeyboardInterrupt
    with torch.no_grad():
        for name, average in averages.items():
            learner.parameters[name].copy_(average)
    if checkpoint is not None:
        state.save(checkpoint, about, plan.iterations)
    return Ended(scaler.skipped, state.trend)


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

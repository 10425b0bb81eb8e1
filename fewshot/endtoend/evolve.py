"""The loop of a method that learns by search, without gradients of the model, and its checkpoints.

As in `fewshot.endtoend.train`, a run that was killed and resumed ends as one that was not.
"""

import math
import time
from pathlib import Path

import torch
from torch import Tensor

from fewshot.endtoend.checkpoint import damaged, read_checkpoint, write_checkpoint
from fewshot.endtoend.clip import Learner
from fewshot.endtoend.interruption import interrupted_later
from fewshot.endtoend.parts.black_box import Search
from fewshot.endtoend.train import Watch
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.endtoend.training_steps import Batches

BLOCK = 64  # images whose crops are encoded at a time


def evolve(
    learner: Learner,
    plan: TrainingPlan,
    batches: Batches,
    labels: Tensor,
    *,
    checkpoint: Path | None = None,
    about: str = "",
    every: float = 30.0,
    watch: Watch = lambda step, loss, accuracy, rate: None,
) -> dict[str, float]:
    """Search for the learner's parameters, in place; how often the model was asked, as `queries`.

    Args:
        learner: A learner with a search.
        plan: Its iterations are generations.
        batches: The images' features, by row of `labels`.
        labels: (N,) class ids.
        checkpoint: As in `train`, like the rest.
        about: What is trained, as text.
        every: Seconds between two checkpoints.
        watch: Called after each generation.

    Raises:
        UserError: The checkpoint is another run's or damaged, or what the search objects to.
    """
    rows_of_all = torch.arange(len(labels))

    def crops(i: int) -> Tensor:
        return torch.cat([batches(rows, i) for rows in torch.split(rows_of_all, BLOCK)])

    assert learner.search is not None
    device = next(iter(learner.parameters.values())).device
    search = learner.search(crops, labels.to(device), plan.iterations)
    first = 0
    if checkpoint is not None and checkpoint.exists():
        first = _resume(search, checkpoint, about)
    saved = time.monotonic()
    with interrupted_later() as stop:
        for generation in range(first, plan.iterations):
            watch(generation + 1, *search.step(), math.nan)
            if checkpoint is not None and (stop() or time.monotonic() - saved > every):
                write_checkpoint(checkpoint, about, generation + 1, search.state())
                saved = time.monotonic()
            if stop():
                raise KeyboardInterrupt
    if checkpoint is not None:
        write_checkpoint(checkpoint, about, plan.iterations, search.state())
    learner.load_state(search.learned())
    return {"queries": float(search.queries)}


def _resume(search: Search, checkpoint: Path, about: str) -> int:
    """Put the search back to where it was; the generations done by then."""
    note, tensors = read_checkpoint(checkpoint, about)
    try:
        search.load_state(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise damaged(checkpoint, error) from None
    return int(note["step"])

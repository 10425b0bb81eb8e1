"""The cost of one training step on the CPU, of several ways to compute it."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from torch import Tensor

FEW = 4  # images and classes of the step that is compared, not measured


@dataclass(frozen=True)
class Cost:
    """The cost of a way, and the outcome of a step with few images and classes.

    Attributes:
        clock: Seconds.
        processors: Seconds on the processors.
        megabytes: Memory above what the process held before.
        loss: Of the small step.
        gradient: Of the small step.
    """

    clock: float
    processors: float
    megabytes: float
    loss: float
    gradient: Tensor


def cost(few: tuple[float, Tensor], step: Callable[[], object], rounds: int) -> Cost:
    """The best of so many rounds of a step, in a process that did nothing big before.

    Args:
        few: Loss and gradient of the small step.
        step: The step.
        rounds: How often it is measured.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _memory("VmRSS")
    clock, processors = [], []
    for _ in range(rounds):
        start = time.perf_counter(), time.process_time()
        step()
        clock.append(time.perf_counter() - start[0])
        processors.append(time.process_time() - start[1])
    return Cost(min(clock), min(processors), _memory("VmHWM") - before, *few)


def _memory(field: str) -> float:
    """Megabytes of this process by that field of the kernel's status (Linux only)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(field)


def compare(
    ways: Sequence[str], classes: Sequence[int], measure: Callable[[str, int], Cost]
) -> None:
    """Print, for each number of classes, a line per way; the first is what others are compared to.

    The loss and gradient that are compared are the small step's.

    Args:
        ways: Their names.
        classes: Numbers of classes.
        measure: Of a way and a number of classes, called in a process of its own.
    """
    for n_classes in classes:
        first: Cost | None = None
        for way in ways:
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                found = alone.submit(measure, way, n_classes).result()
            first = first or found
            difference = (found.gradient - first.gradient).norm() / first.gradient.norm()
            print(
                f"{n_classes} classes, {way:13s} {found.clock:7.2f} s, on processors "
                f"{found.processors:7.2f} s: {first.processors / found.processors:4.1f} times "
                f"faster; {found.megabytes:6.0f} MB; loss and gradient differ by "
                f"{abs(found.loss - first.loss):.0e} and {difference:.0e}",
                flush=True,
            )

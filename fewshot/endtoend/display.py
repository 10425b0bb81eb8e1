"""Progress of a training and of the test after it, one after the other on stderr."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from cache.errors import count
from cache.progress import Advance, progress
from fewshot.endtoend.train import Watch


@contextlib.contextmanager
def shown(
    what: str, n_steps: int, n_test: int, step_name: str = "step", prompts: int = 0
) -> Iterator[tuple[Watch, Callable[[int], None]]]:
    """Functions to call after each training step, and with the number of test images done.

    A resumed training begins where it continues, so that rate and time left are of its own steps.

    Args:
        what: The method.
        n_steps: Steps of the training.
        n_test: Images to test.
        step_name: What progress calls a step.
        prompts: How many prompts a step has the text tower read; 0 to say nothing of them.
    """
    with contextlib.ExitStack() as stack:
        bars: dict[str, Advance] = {}

        def bar(name: str, total: int, done: int) -> Advance:
            if name not in bars:
                stack.close()  # the one before; only one can be shown
                bars[name] = stack.enter_context(progress(f"{what}: {name}", total, done))
            return bars[name]

        begun: list[tuple[int, float]] = []  # the first step that was seen to end, and when

        def watch(step: int, loss: float, accuracy: float, rate: float) -> None:
            notes = [f"loss {loss:.3f}"]
            notes += [] if math.isnan(accuracy) else [f"{accuracy:.0%} of the batch right"]
            begun.append((step, time.monotonic())) if not begun else None
            steps, seconds = step - begun[0][0], time.monotonic() - begun[0][1]
            notes += (
                [f"{count(round(prompts * steps / seconds), 'prompt')}/s"]
                if prompts and steps
                else []
            )
            bar(f"{step_name}s", n_steps, step - 1)(1, ", ".join(notes))

        def tested(n: int) -> None:
            bar("test images", n_test, 0)(n)

        yield watch, tested

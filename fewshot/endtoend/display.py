"""Progress of a training and of the test after it, one after the other on stderr."""

import contextlib
from collections.abc import Callable, Iterator

from cache.progress import Advance, progress
from fewshot.endtoend.train import Watch


@contextlib.contextmanager
def shown(
    what: str, n_steps: int, n_test: int, step_name: str = "step"
) -> Iterator[tuple[Watch, Callable[[int], None]]]:
    """Functions to call after each training step, and with the number of test images done.

    A resumed training begins where it continues, so that rate and time left are of its own steps.
    """
    with contextlib.ExitStack() as stack:
        bars: dict[str, Advance] = {}

        def bar(name: str, total: int, done: int) -> Advance:
            if name not in bars:
                stack.close()  # the one before; only one can be shown
                bars[name] = stack.enter_context(progress(f"{what}: {name}", total, done))
            return bars[name]

        def watch(step: int, loss: float, accuracy: float) -> None:
            note = f"loss {loss:.3f}, {accuracy:.0%} of the batch right"
            bar(f"{step_name}s", n_steps, step - 1)(1, note)

        def tested(n: int) -> None:
            bar("test images", n_test, 0)(n)

        yield watch, tested

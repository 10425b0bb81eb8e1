"""The fall of a training's loss, by its first and its last steps."""

import json
import math


class LossTrend:
    """The losses of the first and the last tenth of a training's steps, in sums.

    A step's loss is of other images, and of other crops, than the one before, so two means differ
    by chance; a fall counts where it is more than twice its standard error, which chance alone
    exceeds in one training of forty. Where every step sees all images there is no chance, and any
    rate makes the loss fall a little; less than a hundredth of it does not count.

    Attributes:
        steps: Of the training.
        part: A tenth of them, or ten: of fewer the standard error is too uncertain.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.part = steps, max(10, steps // 10)
        self._sums = [[0.0, 0.0], [0.0, 0.0]]  # of losses and of squares, first and last
        self._seen = [0, 0]

    def add(self, step: int, loss: float) -> None:
        """Note the loss of a step, counted from 1."""
        for i, inside in enumerate((step <= self.part, step > self.steps - self.part)):
            if inside:
                self._seen[i] += 1
                self._sums[i][0] += loss
                self._sums[i][1] += loss**2

    def complaint(self) -> str:
        """A sentence if the loss did not fall; empty if it did, or if the steps are too few."""
        if self.steps < 2 * self.part or min(self._seen) < self.part:
            return ""
        (first, first_error), (last, last_error) = self._mean(0), self._mean(1)
        error = math.hypot(first_error, last_error)
        if first - last > max(2 * error, abs(first) / 100):
            return ""
        return (
            f"the loss did not fall: its mean is {first:.3g} over the first {self._seen[0]} steps "
            f"and {last:.3g} over the last {self._seen[1]}, and twice the standard error of the "
            f"difference is {2 * error:.2g}"
        )

    def state(self) -> str:
        """All of it, as text; floats come back as they were."""
        return json.dumps([self._seen, self._sums])

    def load_state(self, text: str) -> None:
        """Become the one whose `state` it is."""
        self._seen, self._sums = json.loads(text)

    def _mean(self, i: int) -> tuple[float, float]:
        """Mean and standard error."""
        n, (total, squares) = self._seen[i], self._sums[i]
        mean = total / n
        variance = max(0.0, squares / n - mean**2) * n / (n - 1)
        return mean, math.sqrt(variance / n)

"""Linear probes along a path of C: ours, each from the ones before it, against cold starts.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.probe_path [--features FILE.npz] [--rounds 3]

On 16 shots of 101 classes in 512 dimensions, as UCF101 has: noise about a mean per class, or the
arrays `train16_x` and `train16_y` of a file. First ours along the path of the C that the published
search looks at, seven and what eight bisections between them add, against ours started anew for
each. Then single values of C, cold: CPU seconds of ours and of scikit-learn's L-BFGS at its own
tolerance, side by side. Then times side by side, round by round, over the grid of `linear-probe`:

- ours along the path, and ours started anew for each C;
- scikit-learn's L-BFGS, cold at each C, at its own tolerance and at one for which its objective
  comes as near to the least.

How far each one's objective is above the least known, as a share of it, is printed beside it. Of
the path, the ratio to scikit-learn at a like optimum is what counts.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fewshot.methods.linear_probe import LinearProbe
from fewshot.parts.bisection import bisected
from fewshot.parts.logistic import logistic_path

CLASSES, DIM, SHOTS = 101, 512, 16
SINGLE = (30.0, 300.0, 3000.0)
Fitted = list[tuple[Tensor, Tensor]]  # weight and bias for each C
PATH, COLD, LOOSE, EQUAL = (
    "ours along the path",
    "ours, cold",
    "scikit-learn, cold, tol 1e-4",
    "scikit-learn, cold, tol 1e-6",
)


def data(file: Path | None) -> tuple[Tensor, Tensor]:
    """Features (N, D) of unit norm and labels (N,)."""
    if file is None:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(CLASSES).repeat_interleave(SHOTS)
        common = torch.randn(1, DIM, generator=generator)
        means = 0.4 * torch.randn(CLASSES, DIM, generator=generator) + common
        noise = 0.6 * torch.randn(len(labels), DIM, generator=generator)
        return normalize(means[labels] + noise), labels
    arrays = np.load(file)
    features = torch.from_numpy(arrays["train16_x"].astype(np.float32))
    return normalize(features), torch.from_numpy(arrays["train16_y"])


def search_path(features: Tensor, labels: Tensor, n_classes: int) -> None:
    """Print how much faster the published search's values of C are in turn than one by one."""
    visited: list[float] = []

    def likes_the_default(c: float) -> float:
        visited.append(c)
        return -abs(math.log(c / LinearProbe().C))

    bisected(likes_the_default, LinearProbe().published_recipe("ucf101").grid["C"])
    strengths = sorted(set(visited))
    start = time.perf_counter()
    list(logistic_path(features, labels, n_classes, strengths))
    path = time.perf_counter() - start
    start = time.perf_counter()
    for c in strengths:
        list(logistic_path(features, labels, n_classes, (c,)))
    cold = time.perf_counter() - start
    print(f"the published search's {len(strengths)} values of C: {PATH} {path:.2f} s,", end=" ")
    print(f"{COLD} {cold:.2f} s: {cold / path:.2f} times", flush=True)


def single_values(features: Tensor, labels: Tensor, n_classes: int, rounds: int) -> None:
    """Print for single values of C the CPU seconds of ours, of scikit-learn's, and their ratio."""
    x, y = features.double().numpy(), labels.numpy()
    for c in SINGLE:
        spent = []
        for _ in range(rounds):
            start = time.process_time()
            (ours,) = logistic_path(features, labels, n_classes, (c,))
            middle = time.process_time()
            theirs = LogisticRegression(C=c, max_iter=1000).fit(x, y)
            spent.append((middle - start, time.process_time() - middle))
        ratio = median(our / their for our, their in spent)
        weight, bias = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
        floor = objective(features, labels, c, ours.weight, ours.bias)
        above = objective(features, labels, c, weight, bias) / floor - 1
        print(
            f"C = {c:g}, cold: ours {min(our for our, _ in spent):.2f} CPU s in {ours.passes} "
            f"passes, scikit-learn {min(their for _, their in spent):.2f} and {above:.1e} above "
            f"ours; {ratio:.2f} of its time, median of rounds",
            flush=True,
        )


def objective(features: Tensor, labels: Tensor, c: float, weight: Tensor, bias: Tensor) -> float:
    """|W|^2 / 2 + c times the sum of the cross-entropies."""
    logits = features.double() @ weight.T + bias
    loss = float(cross_entropy(logits, labels, reduction="sum"))
    return float(weight.square().sum()) / 2 + c * loss


def main() -> None:
    """Print the rounds and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    features, labels = data(options.features)
    n_classes = int(labels.max()) + 1
    strengths = LinearProbe.grid["C"]
    x, y = features.double().numpy(), labels.numpy()
    search_path(features, labels, n_classes)
    single_values(features, labels, n_classes, options.rounds)

    def ours(strengths: tuple[float, ...], tol: float = LinearProbe().tol) -> Fitted:
        found = logistic_path(features, labels, n_classes, strengths, tol=tol)
        return [(solution.weight, solution.bias) for solution in found]

    def cold() -> Fitted:
        return [ours((c,))[0] for c in strengths]

    def scikit(tol: float) -> Fitted:
        fitted = []
        for c in strengths:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # short of its tolerance after 1000 iterations
                model = LogisticRegression(C=c, max_iter=1000, tol=tol).fit(x, y)
            fitted.append((torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)))
        return fitted

    def objectives(fitted: Fitted) -> list[float]:
        found = zip(strengths, fitted, strict=True)
        return [objective(features, labels, c, *solution) for c, solution in found]

    least = objectives(ours(strengths, tol=1e-7))
    contestants: dict[str, Callable[[], Fitted]] = {
        PATH: lambda: ours(strengths),
        COLD: cold,
        LOOSE: lambda: scikit(1e-4),
        EQUAL: lambda: scikit(1e-6),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, fit in contestants.items():
            start = time.perf_counter()
            fitted = fit()
            times[name].append(time.perf_counter() - start)
            pairs = zip(objectives(fitted), least, strict=True)
            worst = max(value / floor - 1 for value, floor in pairs)
            print(f"{name}: {times[name][-1]:.2f} s, at most {worst:.1e} above the least")
    for name in (COLD, LOOSE, EQUAL):
        ratios = sorted(other / ours for other, ours in zip(times[name], times[PATH], strict=True))
        print(f"{name}: {ratios[len(ratios) // 2]:.1f} times the path's time, median of rounds")


if __name__ == "__main__":
    main()

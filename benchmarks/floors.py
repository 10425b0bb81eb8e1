"""The least that training can cost: a method's matrix products alone, at their shapes' speed."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache

import torch

from fewshot.method import Method
from fewshot.training import published_epochs

Shape = tuple[int, int, int]  # (m, k) times (k, n)
FOLDS = 4
SWEPT = {"taskres": "alpha", "clip-adapter": "ratio"}  # whose values each have a training
DROP_LAST = ("zs-lp", "clap", "taskres", "clip-adapter")
TRAINED = (*DROP_LAST, "text-probe", "cross-modal", "tip-adapter-f", "ape-t")


def floor(method: Method, shots: int, n_classes: int, dim: int, *, tuned: bool) -> float | None:
    """Seconds of the products of tuning by folds and fitting; None for methods not listed here.

    Args:
        method: With its epochs and batch size.
        shots: K.
        n_classes: C.
        dim: D.
        tuned: Whether folds come before the fit.
    """
    counts = Counter(_training(method, shots * n_classes, n_classes, dim))
    if not counts:
        return None
    n_folds = min(shots, FOLDS) if tuned and method.grid and shots > 1 else 0
    settings = len(method.grid[SWEPT[method.name]]) if method.name in SWEPT else 1
    for _ in range(n_folds):
        n_train = (shots - shots // n_folds) * n_classes
        for shape, times in _training(method, n_train, n_classes, dim).items():
            counts[shape] += settings * times
    return sum(times * seconds(*shape) for shape, times in counts.items())


@cache
def seconds(m: int, k: int, n: int) -> float:
    """CPU seconds of one product of this shape, the best of many."""
    a, b = torch.randn(m, k), torch.randn(k, n)
    repeats = max(1, 20_000_000 // (m * k * n))
    best = math.inf
    for _ in range(8):
        start = time.process_time()
        for _ in range(repeats):
            a @ b
        best = min(best, (time.process_time() - start) / repeats)
    return best


def _training(method: Method, n: int, c: int, d: int) -> Mapping[Shape, int]:
    """How many products of each shape one training on N images takes."""
    name, own = method.name, asdict(method)
    if name == "lp++":
        return {(n, min(n, d), c): 2 * own["epochs"]}
    if name not in TRAINED:
        return {}
    epochs = own["epochs"] if own["epochs"] != "published" else max(100, published_epochs(n / c))
    size = own["batch_size"] // 2 if name == "cross-modal" else own["batch_size"]
    steps = epochs * (max(1, n // size) if name in DROP_LAST else math.ceil(n / size))
    b = min(n, size)
    if name == "cross-modal":
        return Counter({(b, d, c): 2 * steps}) + Counter({(min(c, size), d, c): 2 * steps})
    if name == "clip-adapter":
        return {(b, d, c): 2 * steps, (b, d, d // own["reduction"]): 5 * steps}
    if name == "tip-adapter-f":
        return {(b, d, n): 2 * steps}
    if name == "ape-t":
        q = round(own["channels"] * d)
        return {(b, q, c): 2 * steps, (n, q, n): 1}
    return {(b, d, c): 2 * steps}

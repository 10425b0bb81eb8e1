"""Tip-Adapter's published search, 200 betas by 20 alphas: pair by pair against all alphas at once.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.tip_adapter_grid [--features FILE.npz] [--rounds 3]

As big as UCF101 at 16 shots, 1616 keys of 101 classes, 1898 validation images and 512 dimensions:
noise about class means, or an archive's `train16_x`, `train16_y`, `val_x`, `val_y` and `text`.
The naive search builds the votes of every pair anew by a product with one-hot values, as the
authors' loop does, and takes minutes; the fast one is timed beside it, at the start, in the middle
and at the end. Prints the pair that each finds, and the ratio of their times.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, one_hot

from fewshot.parts.key_value_cache import KeyValueCache
from fewshot.parts.tip_search import published_grid, search_pair

CLASSES, SHOTS, DIM, VALIDATION = 101, 16, 512, 1898


def synthetic() -> dict[str, Tensor]:
    """Cosines much like CLIP's: images about 0.6 to each other, about 0.2 to the text."""
    generator = torch.Generator().manual_seed(0)

    def noise(n: int) -> Tensor:
        return normalize(torch.randn(n, DIM, generator=generator), dim=-1)

    of_images, of_text, means = noise(1), noise(1), noise(CLASSES)
    train_y = torch.arange(CLASSES).repeat_interleave(SHOTS)
    val_y = torch.randint(CLASSES, (VALIDATION,), generator=generator)

    def images(labels: Tensor) -> Tensor:
        return normalize(
            1.3 * of_images + 0.5 * of_text + 0.5 * means[labels] + noise(len(labels)), dim=-1
        )

    text = normalize(of_text + 0.4 * means + 0.6 * noise(CLASSES), dim=-1)
    return {
        "train16_x": images(train_y),
        "train16_y": train_y,
        "val_x": images(val_y),
        "val_y": val_y,
        "text": text,
    }


def read(path: Path) -> dict[str, Tensor]:
    """The same from an archive, at unit norm."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in synthetic()}
    return {
        name: torch.from_numpy(a)
        if name.endswith("_y")
        else normalize(torch.from_numpy(a.astype(np.float32)), dim=-1)
        for name, a in arrays.items()
    }


class Naive:
    """The authors' loop, which may be left and taken up again."""

    def __init__(self, data: dict[str, Tensor]) -> None:
        self.keys, self.query, self.labels = data["train16_x"], data["val_x"], data["val_y"]
        self.values = one_hot(data["train16_y"], CLASSES).float()
        self.zero_shot = 100 * self.query @ data["text"].T
        self.best = (0.0, 0.0, 0)

    def search(self, betas: tuple[float, ...], alphas: tuple[float, ...]) -> None:
        """Go on with some betas."""
        affinity = self.query @ self.keys.T
        for beta in betas:
            for alpha in alphas:
                votes = ((-1) * (beta - beta * affinity)).exp() @ self.values
                logits = self.zero_shot + votes * alpha
                hits = int((logits.argmax(dim=1) == self.labels).sum())
                if hits > self.best[2]:
                    self.best = (alpha, beta, hits)


def main() -> None:
    """Print the pairs found and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    data = read(options.features) if options.features else synthetic()
    grid = published_grid("ucf101")
    cache = KeyValueCache(data["train16_x"], data["train16_y"], CLASSES)
    naive, slow, ratios = Naive(data), 0.0, []
    share = -(-len(grid["beta"]) // options.rounds)
    found = (0.0, 0.0, 0)
    for start in range(0, len(grid["beta"]), share):
        betas = grid["beta"][start : start + share]
        begun = time.perf_counter()
        naive.search(betas, grid["alpha"])
        slow = (time.perf_counter() - begun) * len(grid["beta"]) / len(betas)
        begun = time.perf_counter()
        zero_shot = linear(data["val_x"], 100 * data["text"])
        found = search_pair(grid, zero_shot, cache, data["val_x"], data["val_y"])
        fast = time.perf_counter() - begun
        ratios.append(slow / fast)
        print(f"naive {slow:.1f} s (of the whole), fast {fast:.2f} s: {ratios[-1]:.0f} x")
    for name, (alpha, beta, hits) in (("naive", naive.best), ("fast", found)):
        accuracy = hits / len(data["val_y"])
        print(f"{name}: alpha {alpha:.4g}, beta {beta:.4g}, accuracy {100 * accuracy:.2f} %")
    print(f"the same pair: {found == naive.best}")
    print(f"median {sorted(ratios)[len(ratios) // 2]:.0f} x")


if __name__ == "__main__":
    main()

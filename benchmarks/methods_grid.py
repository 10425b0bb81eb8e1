"""The whole grid on a store of UCF101's size: every method, number of shots and seed.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.methods_grid [--store FILE] [--methods gda,ridge]

The store is noise of 101 classes, 512 dimensions and 3,783 test images, unless one is given. Prints
for every method the seconds of all its fits with their tuning and tests, of the dearest fit, and
its accuracy at the most shots; then the sums, over all methods and over those that train nothing.
What a method refuses is printed and left out.

    python -m benchmarks.methods_grid --against REF [--store FILE] [--methods taskres] [--rounds 2]

compares this checkout with another commit, on one thread and one seed: CPU seconds, their ratio,
the share of equal predictions, the largest difference of a logit, and how far the seconds are from
those of the method's own matrix products alone.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.against import compare
from benchmarks.noise_store import write
from cache.errors import UserError
from cache.store import FeatureStore
from fewshot import METHODS, Method, Result, configure, evaluate


@dataclass
class Spent:
    """What one method took.

    Attributes:
        results: Of its fits.
        wall: Seconds in all, reading features included.
        refused: What it refused and why.
    """

    results: list[Result] = field(default_factory=list)
    wall: float = 0.0
    refused: dict[str, None] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether gradients moved anything."""
        return any("trained_parameters" in result.measures for result in self.results)

    def line(self, name: str) -> str:
        """The method's line of the table."""
        if not self.results:
            return f"{name:16}refused: {'; '.join(self.refused)}"
        dearest = max(result.fit_seconds for result in self.results)
        most = max(result.shots for result in self.results)
        there = [result.accuracy for result in self.results if result.shots == most]
        refused = f"  refused: {'; '.join(self.refused)}" if self.refused else ""
        return (
            f"{name:16}{'trained' if self.trained else 'closed':9}{len(self.results):4} fits "
            f"{self.wall:8.2f} s, dearest {dearest:7.2f} s, "
            f"accuracy {sum(there) / len(there):.4f} at {most}{refused}"
        )


def run(
    store: FeatureStore, method: Method, shots: list[int], seeds: list[int], tune: str | None
) -> Spent:
    """Every number of shots and every seed of one method."""
    spent = Spent()
    start = time.perf_counter()
    draws = [(k, s) for k in shots for s in seeds]
    for k, s in draws[:1] if not method.needs_support(shots=1) else draws:
        try:
            spent.results.append(evaluate(store, method, shots=k, seed=s, tune=tune))
        except UserError as error:
            spent.refused[str(error)] = None
    spent.wall = time.perf_counter() - start
    return spent


def main() -> None:
    """Print the table and the sums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--store", type=Path, help="an existing store instead of noise")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--shots", default="1,2,4,8,16")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--tune", help="the default protocol without it")
    parser.add_argument("--against", metavar="REF", help="compare with this commit")
    parser.add_argument("--rounds", type=int, default=2, help="of each commit, with --against")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--classes", type=int, default=101)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--test", type=int, default=3783)
    parser.add_argument("--views", type=int, default=0)
    options = parser.parse_args()
    shots, seeds = ([int(n) for n in text.split(",")] for text in (options.shots, options.seeds))
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as directory:
        store = (
            FeatureStore.open(options.store)
            if options.store
            else write(
                Path(directory) / "noise" / "noise.h5",
                classes=options.classes,
                dim=options.dim,
                sizes={
                    "train": 2 * max(shots) * options.classes,
                    "val": 4 * options.classes,
                    "test": options.test,
                },
                views=options.views,
            )
        )
        if options.against:
            names = options.methods.split(",")
            compare(options.against, store.path, names, shots, options.tune, options.rounds)
            return
        everything, closed = 0.0, 0.0
        for name in options.methods.split(","):
            method = configure(name, logit_scale=store.logit_scale)
            spent = run(store, method, shots, seeds, options.tune)
            everything += spent.wall
            closed += 0.0 if spent.trained else spent.wall
            print(spent.line(name), flush=True)
    print(f"all: {everything:.2f} s; those that train nothing: {closed:.2f} s")


if __name__ == "__main__":
    main()

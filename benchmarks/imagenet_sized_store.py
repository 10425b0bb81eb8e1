"""A store as big as ImageNet's: drawing the few shots from it, and GDA against a zero-shot pass.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.imagenet_sized_store [--folder DIR] [--rounds 3]

Writes 1,281,167 train and 50,000 test features of 512 dimensions and 1000 classes, all noise about
a mean per class (1.4 GB, a minute; kept if --folder is given). Prints

- seconds and growth of resident memory for opening the store and drawing 16 shots of every class,
  in a process that has done nothing else;
- GDA's fit, tuning and test as a multiple of one zero-shot pass over the same test features.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.noise_store import write
from cache.store import FeatureStore
from fewshot import GDA, SupportSet, ZeroShot, classify, draw, tune
from fewshot.text import Text

CLASSES, DIM, SHOTS = 1000, 512, 16
SIZES = {"train": 1_281_167, "test": 50_000}

DRAW = """
import json, sys, time
from pathlib import Path
import numpy as np
from cache.store import FeatureStore
from fewshot.sampling import draw

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20

before, start = resident(), time.perf_counter()
store = FeatureStore.open(Path(sys.argv[1]))
sample = draw(store.labels("train"), store.classnames, shots=16, seed=1)
features = store.features("train", sample.train)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "grown": resident() - before, "rows": len(features)}))
"""


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print both measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = (options.folder or Path(directory)) / "noise.h5"
        write(path, classes=CLASSES, dim=DIM, sizes=SIZES)
        for _ in range(options.rounds):
            ran = subprocess.run(
                [sys.executable, "-c", DRAW, path], capture_output=True, text=True, check=True
            )
            drawn = json.loads(ran.stdout)
            print(
                f"open and draw {drawn['rows']} rows: {drawn['seconds']:.2f} s, "
                f"{drawn['grown']:.0f} MiB more resident"
            )
        store = FeatureStore.open(path)
        sample = draw(store.labels("train"), store.classnames, shots=SHOTS, seed=1)
        labels = torch.from_numpy(store.labels("train")[sample.train])
        features = torch.from_numpy(store.features("train", sample.train))
        support = SupportSet(features, labels, CLASSES)
        text = Text(torch.from_numpy(store.text()))
        test = torch.from_numpy(store.features("test"))

        def zero_shot() -> None:
            classify(ZeroShot().fit(None, text), test)

        def gda() -> None:
            chosen = tune(GDA(), support, text, protocol="cv")
            classify(chosen.fit(support, text), test)

        zero_shot()
        gda()
        ratios = []
        for _ in range(options.rounds):
            one, other = seconds(zero_shot), seconds(gda)
            ratios.append(other / one)
            print(
                f"zero-shot {one:.2f} s, gda fit, tune and test {other:.2f} s: {ratios[-1]:.2f} x"
            )
        print(f"median {sorted(ratios)[len(ratios) // 2]:.2f} x")


if __name__ == "__main__":
    main()

"""Two commits on the same store, side by side: how much faster, and how equal."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.floors import floor
from cache.store import FeatureStore
from fewshot import configure

HERE = Path(__file__).parents[1]
HEADER = (
    f"{'method':16}{'before':>9}{'now':>9}{'ratio':>7}{'equal':>10}{'logits':>10}"
    f"{'floor':>8}{'now/floor':>11}"
)


def compare(
    ref: str, path: Path, names: Sequence[str], shots: list[int], tune: str | None, rounds: int
) -> None:
    """Print, for each method, CPU seconds of both commits and how their predictions differ.

    `equal` is the share of test images with the same prediction, `logits` the largest difference of
    a logit, over all numbers of shots. Processes of the two commits alternate, and the fastest of
    the rounds counts.

    Args:
        ref: The other commit.
        path: The store.
        names: Methods; what either commit refuses is left out.
        shots: Numbers of shots, one fit each.
        tune: The tuning protocol; the default one without it.
        rounds: Of each commit.
    """
    torch.set_num_threads(1)  # for the floor; the processes have one as well
    store = FeatureStore.open(path)
    print(HEADER)
    sums = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as directory:
        other = Path(directory) / "other"
        other.mkdir()
        archive = subprocess.run(
            ["git", "archive", ref], cwd=HERE, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", other], input=archive, check=True)
        for name in names:
            files = [Path(directory) / "before.pt", Path(directory) / "now.pt"]
            took: list[list[float | None]] = [[], []]
            for _ in range(rounds):
                for tree, file, seconds in zip((other, HERE), files, took, strict=True):
                    asked = {
                        "store": str(path.resolve()), "method": name, "shots": shots, "tune": tune,
                        "logits": str(file),
                    }  # fmt: skip
                    seconds.append(_child(tree, asked))
            before, now = (min((s for s in seconds if s), default=0.0) for seconds in took)
            if not before or not now:
                print(f"{name:16}refused")
                continue
            sums = [sums[0] + before, sums[1] + now]
            pairs = list(zip(*(torch.load(file) for file in files), strict=True))
            equal = torch.cat([a.argmax(dim=1) == b.argmax(dim=1) for a, b in pairs])
            largest = max(float((a - b).abs().max()) for a, b in pairs)
            method = configure(name)
            dim, n_classes = store.dim, store.n_classes
            floors = [floor(method, k, n_classes, dim, tuned=tune != "none") for k in shots]
            line = (
                f"{name:16}{before:9.2f}{now:9.2f}{before / now:7.2f}"
                f"{float(equal.double().mean()):10.3%}{largest:10.1e}"
            )
            known = [one for one in floors if one is not None]
            if known:
                line += f"{sum(known):8.2f}{now / sum(known):11.1f}"
            print(line, flush=True)
    print(f"{'all':16}{sums[0]:9.2f}{sums[1]:9.2f}{sums[0] / sums[1]:7.2f}")


def _child(tree: Path, asked: Mapping[str, object]) -> float | None:
    """CPU seconds of a method in a process of that tree; None where the method refused."""
    ran = subprocess.run(
        [sys.executable, HERE / "benchmarks" / "one_method.py", json.dumps(asked)],
        cwd=tree, env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode:
        if "UserError" not in ran.stderr:
            raise SystemExit(ran.stderr)
        return None
    return float(json.loads(ran.stdout.splitlines()[-1]))

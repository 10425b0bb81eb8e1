"""Every method on as many classes and test images as ImageNet's, at 16 shots: memory and time.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.imagenet_methods [--folder DIR] [--methods gda]
    python -m benchmarks.imagenet_methods --methods gda --shots 1000 --memory 8    a million images
    python -m benchmarks.imagenet_methods --methods gda --classes 21841 --test 5000 --memory 8

Writes a store of noise of 1,000 classes and 50,000 test images of 512 dimensions (kept if --folder
is given). Each method runs in a process of its own, under its default tuning. Prints the most
memory that process ever had, of which the first line, zero-shot, says what any run takes, its CPU
seconds, and the time of fit, tuning and test as a multiple of a zero-shot pass over the same images
in the same process. A method that refuses such sizes is printed with its reason. With --epochs,
methods that go over the images again and again do so that often alone, and the time of their own
number of epochs is reckoned from it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.noise_store import write
from cache.errors import UserError
from cache.store import FeatureStore
from fewshot import METHODS, ZeroShot, configure, evaluate


def measure(
    path: Path, name: str, shots: int, tune: str | None, gib: float, epochs: int
) -> dict[str, object]:
    """What one method takes in this process, which may have no more than so much memory."""
    if gib:
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30),) * 2)
    store = FeatureStore.open(path)
    passes = [evaluate(store, ZeroShot()) for _ in range(3)]
    one = min(result.fit_seconds + result.predict_seconds for result in passes)
    try:
        method = configure(name, logit_scale=store.logit_scale)
        whole = getattr(method, "epochs", 0)
        whole = 200 if whole == "published" else whole  # TaskRes's and CLIP-Adapter's at 16 shots
        short = replace(method, epochs=epochs) if epochs and whole > epochs else method
        start = time.process_time()
        result = evaluate(store, short, shots=shots, tune=tune)
    except UserError as error:
        return {"refused": str(error)}
    return {
        "fit": result.fit_seconds * (1 if short is method else whole / epochs),
        "reckoned": "" if short is method else f" (from {epochs} of {whole} epochs)",
        "test": result.predict_seconds,
        "zero_shot": one,
        "cpu": time.process_time() - start,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Print a line for every method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--tune", help="the default protocol without it")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--test", type=int, default=50_000)
    parser.add_argument("--memory", type=float, default=0, help="GiB it may use; 0 is all")
    parser.add_argument("--epochs", type=int, default=0, help="0 for the methods' own")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for a method")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # a store and a method
    options = parser.parse_args()
    if options.measure:
        path, name = options.measure
        found = measure(
            Path(path), name, options.shots, options.tune, options.memory, options.epochs
        )
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as directory:
        path = (options.folder or Path(directory)) / "noise" / "noise.h5"
        sizes = {"train": options.shots * options.classes, "test": options.test}
        write(path, classes=options.classes, dim=options.dim, sizes=sizes)
        for name in dict.fromkeys(["zero-shot", *options.methods.split(",")]):
            command = [sys.executable, __file__, "--measure", str(path), name]
            command += ["--shots", str(options.shots), "--memory", str(options.memory)]
            command += ["--epochs", str(options.epochs)]
            command += ["--tune", options.tune] if options.tune else []
            print(f"{name:16}{outcome(command, options.timeout)}", flush=True)


def outcome(command: list[str], timeout: float) -> str:
    """One method's line, whatever became of its process."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"not done after {timeout:.0f} s"
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["without a word"])[-1]
        return f"ended with code {ran.returncode}: {last}"
    found = json.loads(ran.stdout)
    if "refused" in found:
        return f"refused: {found['refused']}"
    seconds = found["fit"] + found["test"]
    return (
        f"peak {found['peak']:6.2f} GiB, CPU {found['cpu']:8.2f} s, "
        f"fit and tuning {found['fit']:8.2f} s, test {found['test']:7.2f} s, "
        f"{seconds / found['zero_shot']:8.1f} x zero-shot"
        f"{found['reckoned']}"
    )


if __name__ == "__main__":
    main()

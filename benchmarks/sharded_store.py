"""Ten million images in one file and in parts: opening the store and drawing the few shots.

    OMP_NUM_THREADS=1 python -m benchmarks.sharded_store [--folder DIR] [--images 10000000]

Writes noise of 1000 classes twice, in one file and in parts (6 GB with the defaults; removed unless
--folder is given). A process that has done nothing else then opens each store and draws 16 shots of
every class, with its files out of the page cache and once more. Prints seconds, the growth of
resident memory and its peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.imagenet_sized_store import DRAW
from cache.arrays.parts import PART_BYTES, StorePart, create_part, open_part, parts_folder
from cache.extraction.store_writer import create

CLASSES, BLOCK = 1000, 65_536
PEAK = """
said = Path("/proc/self/status").read_text().partition("VmHWM:")[2]
print(int(said.split()[0]) / 2**10)
"""


def noise(start: int, stop: int, dim: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blocks of noise from row to row, with the place of each behind `start`; always the same."""
    for at in range(start, stop, BLOCK):
        size = min(BLOCK, stop - at)
        yield at - start, np.random.default_rng(at).standard_normal((size, dim), np.float32)


def write(path: Path, n: int, dim: int, *, in_parts: bool) -> None:
    """A store of n train images; its bytes depend on nothing but the arguments."""
    listed = []
    each = PART_BYTES // (2 * dim) // BLOCK * BLOCK
    for number, start in enumerate(range(0, n, each) if in_parts else ()):
        stop, file = min(start + each, n), parts_folder(path) / f"train-{number:05d}.h5"
        made_of = f"{number:064x}"
        with create_part(file, "train", made_of, {"features": (stop - start, dim)}, str) as part:
            for at, block in noise(start, stop, dim):
                part.write("features", at, block)
        listed.append(StorePart.of(open_part(str(file), made_of), made_of))
    identity = {"dataset": {"name": "noise"}, "model": {"name": "noise", "logit_scale": 100.0}}
    names = [f"class {k}" for k in range(CLASSES)]
    labels = np.sort(np.arange(n) % CLASSES)
    with create(path, identity=identity, classnames=names, versions={}) as writer:
        paths = [f"{k}/{i:08d}.JPEG" for i, k in enumerate(labels.tolist())]
        writer.split("train", labels=labels, paths=paths, dim=dim, parts=listed or None)
        for at, block in () if in_parts else noise(0, n, dim):
            writer.write("train", at, block)


def forget(files: list[Path]) -> None:
    """Have the system read these files from the disk again."""
    for file in files:
        with file.open("rb") as open_file:
            os.fsync(open_file.fileno())
            os.posix_fadvise(open_file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = options.folder or Path(directory)
        for name in ("one-file", "parts"):
            path = folder / "noise" / f"{name}.h5"
            if not path.exists():
                started = time.perf_counter()
                write(path, options.images, options.dim, in_parts=name == "parts")
                print(f"{name}: written in {time.perf_counter() - started:.0f} s", flush=True)
            files = [path, *parts_folder(path).glob("*.h5")]
            size = sum(file.stat().st_size for file in files)
            print(f"{name}: {len(files)} files, {size / 1e9:.2f} GB")
            for read in ("from the disk", "from memory"):
                if read == "from the disk":
                    forget(files)
                ran = subprocess.run(
                    [sys.executable, "-c", DRAW + PEAK, path],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                first, peak = ran.stdout.splitlines()
                drawn = json.loads(first)
                print(
                    f"{name}: open and draw {drawn['rows']} rows {read}: {drawn['seconds']:.2f} s, "
                    f"{drawn['grown']:.0f} MiB more resident, {float(peak):.0f} MiB at most",
                    flush=True,
                )


if __name__ == "__main__":
    main()

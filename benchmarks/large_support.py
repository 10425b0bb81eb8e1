"""Tuning and fitting on a support set in memory, under a limit: CPU seconds and peak memory.

    python -m benchmarks.large_support                     a million images of 1,000 classes
    python -m benchmarks.large_support --images 349456 --classes 21841 --methods gda,tip-adapter

Each method runs in a process of its own on one thread, on noise about a mean per class. Prints its
CPU seconds, those of the classification of 1,000 images, and the most memory that the process ever
had, of which the first figure says what the support set itself takes. A method that refuses such
sizes is printed with its reason.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import SupportSet, Text, configure
from fewshot.model_selection.tuning import fit_tuned

GIB = 2**30
ROWS = 2**16


def task(images: int, classes: int, dim: int) -> tuple[SupportSet, Text]:
    """A support set and text, all noise about a mean per class."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(classes, dim, generator=generator)
    labels = torch.arange(images) % classes
    features = torch.empty(images, dim)
    for part, of_class in zip(torch.split(features, ROWS), torch.split(labels, ROWS), strict=True):
        noise = torch.randn(len(part), dim, generator=generator)
        normalize(noise.add_(means[of_class], alpha=0.4), dim=1, out=part)
    text = normalize(means + 2 * torch.randn(classes, dim, generator=generator), dim=1)
    return SupportSet(features, labels, classes), Text(text)


def peak() -> float:
    """The most memory that this process ever had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def measure(name: str, images: int, classes: int, dim: int, gib: float) -> str:
    """One method's line."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * GIB),) * 2)
    torch.set_num_threads(1)
    support, text = task(images, classes, dim)
    there, start = peak(), time.process_time()
    try:
        _, classifier = fit_tuned(configure(name), support, text, protocol="cv", logit_scale=100.0)
    except UserError as error:
        return f"{name:12s} refused: {error}"
    fitted = time.process_time()
    classifier.logits(support.features[:1000])
    return (
        f"{name:12s} tuning and fitting {fitted - start:7.1f} s, 1,000 images "
        f"{time.process_time() - fitted:6.2f} s, peak {peak():5.2f} GiB ({there:.2f} before)"
    )


def main() -> None:
    """Print a line for every method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--memory", type=float, default=8, help="GiB it may use")
    parser.add_argument("--methods", default="gda,ridge,tip-adapter,proker")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one method, in this process
    options = parser.parse_args()
    if options.measure:
        sizes = options.images, options.classes, options.dim, options.memory
        print(measure(options.measure, *sizes), flush=True)
        return
    for name in options.methods.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        said = (ran.stdout if ran.returncode == 0 else ran.stderr).strip().splitlines()
        print(said[-1] if said else f"{name:12s} ended with code {ran.returncode}", flush=True)


if __name__ == "__main__":
    main()

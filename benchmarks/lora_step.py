"""One step of CLIP-LoRA, both towers, forward and backward: all 77 positions against ours.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.lora_step [--classes 100 397] [--batch-size 32]

Both run the same ViT-B/32 (random weights) with the same pairs beside query, key and value of every
block, at dropout 0 so that they have one loss and one gradient; they differ in the text tower
alone. Class names are ImageNet's, the template is CLIP-LoRA's. On the CPU, each in a process of its
own; 397 classes at 77 positions take 10 GB. Prints seconds on the clock and on the processors,
memory above what the process held before (Linux only), the ratio by the processors' seconds, which
other work on the machine hardly changes, and the differences.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import open_clip
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.models.encoder import wrap
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.text_tower import encode


@dataclass(frozen=True)
class Step:
    """What a way took and gave."""

    clock: float
    processors: float
    megabytes: float
    loss: float
    gradient: Tensor


def memory(field: str) -> float:
    """Megabytes of this process by that field of the kernel's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(field)


def measure(plain: bool, n_classes: int, batch_size: int, rounds: int) -> Step:
    """The best of so many rounds, after one with two images and classes."""
    torch.manual_seed(0)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    stock = open_clip.create_model("ViT-B-32")  # with random weights
    clip = Clip.of(wrap(stock, tokenizer, torch.device("cpu"), name="untrained", arch="ViT-B-32"))
    parameters, _ = CLIPLoRA(dropout=0.0).insert(clip)
    model, trained = clip.model, list(parameters.values())
    generator = torch.Generator().manual_seed(1)
    for B in trained[1::2]:
        torch.nn.init.normal_(B, std=0.01, generator=generator)
    names = [name.replace("_", " ") for name in IMAGENET_CLASSNAMES[:n_classes]]
    tokens = tokenizer([f"a photo of a {name}." for name in names])
    pixels = torch.randn(batch_size, 3, 224, 224, generator=generator)
    labels = torch.arange(batch_size) % 2

    def step(images: Tensor, prompts: Tensor) -> tuple[float, Tensor]:
        text = model.encode_text(prompts) if plain else encode(model, prompts)
        image = normalize(model.encode_image(images), dim=1)
        loss = cross_entropy(100 * image @ normalize(text, dim=1).T, labels[: len(images)])
        gradients = torch.autograd.grad(loss, trained)
        return float(loss.detach()), torch.cat([g.flatten() for g in gradients])

    step(pixels[:2], tokens[:2])
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = memory("VmRSS")
    clock, processors = [], []
    for _ in range(rounds):
        start = time.perf_counter(), time.process_time()
        loss, gradient = step(pixels, tokens)
        clock.append(time.perf_counter() - start[0])
        processors.append(time.process_time() - start[1])
    return Step(min(clock), min(processors), memory("VmHWM") - before, loss, gradient)


def main() -> None:
    """Print two lines and a ratio for each number of classes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 397])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    for n_classes in options.classes:
        steps = []
        for plain in (True, False):
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                arguments = (plain, n_classes, options.batch_size, options.rounds)
                steps.append(alone.submit(measure, *arguments).result())
            print(
                f"{n_classes} classes, {'77 positions' if plain else 'ours':12s} "
                f"{steps[-1].clock:7.2f} s, on processors {steps[-1].processors:7.2f} s; "
                f"{steps[-1].megabytes:6.0f} MB"
            )
        plainly, ours = steps
        difference = (ours.gradient - plainly.gradient).norm() / plainly.gradient.norm()
        print(
            f"{n_classes} classes: {plainly.processors / ours.processors:.1f} times faster; "
            f"loss differs by {abs(ours.loss - plainly.loss):.1e} of {plainly.loss:.3f}, "
            f"gradient by {difference:.1e}"
        )


if __name__ == "__main__":
    main()

"""One step of CoOp's text side, forward and backward, in three ways that give one gradient.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.coop_step [--context 16] [--rounds 2]

naive: open_clip's tower on all 77 positions, as CoOp's code runs it. truncated: the same on the
positions up to the last end-of-text token. shared: ours, the context computed once for all classes
and no padding. Text tower of a ViT-B with random weights, the 47 class names of DTD, on the CPU,
each way in a process of its own. Prints seconds on the clock and on the processors, memory above
what the process held before (Linux only), the ratio to naive by the processors' seconds, which
other work on the machine hardly changes, and how far the context's gradient is from naive's.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fewshot.endtoend.attention import unfuse
from fewshot.endtoend.text_tower import encode_with_prefix

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
TEXTURES = """
banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted
fibrous flecked freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined
marbled matted meshed paisley perforated pitted pleated polka-dotted porous potholed scaly
smeared spiralled sprinkled stained stratified striped studded swirly veined waffled woven
wrinkled zigzagged
"""
VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}  # not used


@dataclass(frozen=True)
class Step:
    """What a way took and gave."""

    clock: float
    processors: float
    megabytes: float
    gradient: Tensor


def naive(model: Any, context: Tensor, prompts: Tensor, end: Tensor) -> Tensor:
    """(C, D) features of prompts (C, 77, W) with the context put after their start token."""
    whole = torch.cat(
        [prompts[:, :1], context.expand(len(prompts), -1, -1), prompts[:, 1 + len(context) :]],
        dim=1,
    )
    length = whole.shape[1]
    mask = model.attn_mask[:length, :length]
    x = model.transformer(whole + model.positional_embedding[:length], attn_mask=mask)
    features: Tensor = model.ln_final(x)[torch.arange(len(x)), end] @ model.text_projection
    return features


def truncated(model: Any, context: Tensor, prompts: Tensor, end: Tensor) -> Tensor:
    """The same from the positions that matter to some class."""
    return naive(model, context, prompts[:, : int(end.max()) + 1], end)


def shared(model: Any, context: Tensor, prompts: Tensor, end: Tensor) -> Tensor:
    """The same from the positions that matter, the prefix once."""
    prefix = torch.cat([prompts[0, :1], context])
    return encode_with_prefix(model, prefix, prompts[:, len(prefix) :], end - len(prefix))


WAYS = {"naive": naive, "truncated": truncated, "shared": shared}


def memory(field: str) -> float:
    """Megabytes of this process by that field of the kernel's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(field)


def measure(way: str, n_context: int, rounds: int) -> Step:
    """The best of so many rounds, after one with two classes."""
    torch.manual_seed(0)
    model = open_clip.CLIP(512, VISION, TEXT).eval().requires_grad_(False)
    if way == "shared":
        unfuse(model)
    placeholder = " ".join(["X"] * n_context)
    names = TEXTURES.split()
    tokens = open_clip.get_tokenizer("ViT-B-16")([f"{placeholder} {x}." for x in names])
    prompts, end = model.token_embedding(tokens), tokens.argmax(dim=1)
    context = (0.02 * torch.randn(n_context, 512)).requires_grad_()
    images = normalize(torch.randn(32, 512), dim=1)
    labels = torch.arange(32) % 2

    def gradient(classes: int) -> Tensor:
        features = WAYS[way](model, context, prompts[:classes], end[:classes])
        loss = cross_entropy(100 * images @ normalize(features, dim=1).T, labels)
        return torch.autograd.grad(loss, context)[0]

    gradient(2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = memory("VmRSS")
    clock, processors = [], []
    for _ in range(rounds):
        start = time.perf_counter(), time.process_time()
        found = gradient(len(names))
        clock.append(time.perf_counter() - start[0])
        processors.append(time.process_time() - start[1])
    return Step(min(clock), min(processors), memory("VmHWM") - before, found)


def main() -> None:
    """Print a line per way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    first = None
    for way in WAYS:
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            step = alone.submit(measure, way, options.context, options.rounds).result()
        first = first or step
        difference = (step.gradient - first.gradient).norm() / first.gradient.norm()
        print(
            f"{way:9s} {step.clock:7.3f} s, on processors {step.processors:7.3f} s: "
            f"{first.processors / step.processors:4.1f} times faster; {step.megabytes:5.0f} MB; "
            f"gradient differs by {difference:.1e}"
        )


if __name__ == "__main__":
    main()

"""One step of CoOp's text side, forward and backward, in three ways that give one gradient.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.coop_step [--classes 47 100 397] [--context 16]

plain: open_clip's tower on all 77 positions, as CoOp's code runs it. truncated: the same on the
positions up to the last end-of-text token. ours: the context computed once for all classes and no
padding. Text tower of a ViT-B with random weights, 32 images' stored features, on the CPU. Prints
seconds on the clock and on the processors, memory above what the process held before (Linux only),
the ratio by the processors' seconds, which other work on the machine hardly changes, and how far a
small step's loss and gradient are from the plain one's. 397 classes at 77 positions take 8 GB.
"""

import argparse
from functools import partial
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.plain_text import classnames, with_context
from benchmarks.step_cost import FEW, Cost, compare, cost
from fewshot.endtoend.attention import unfuse
from fewshot.endtoend.text_tower import encode_with_prefix

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}  # not used


def truncated(model: Any, context: Tensor, rows: Tensor, end: Tensor) -> Tensor:
    """(C, D) from the positions that matter to some class."""
    return with_context(model, context, rows[:, : int(end.max()) + 1], end)


def ours(model: Any, context: Tensor, rows: Tensor, end: Tensor) -> Tensor:
    """(C, D) from the positions that matter, the prefix once."""
    prefix = torch.cat([rows[0, :1], context])
    return encode_with_prefix(model, prefix, rows[:, len(prefix) :], end - len(prefix))


WAYS = {"plain": with_context, "truncated": truncated, "ours": ours}


def measure(way: str, n_classes: int, *, n_context: int, rounds: int) -> Cost:
    """The cost of a way."""
    torch.manual_seed(0)
    model = open_clip.CLIP(512, VISION, TEXT).eval().requires_grad_(False)
    if way == "ours":
        unfuse(model)
    placeholder = " ".join(["X"] * n_context)
    tokens = open_clip.get_tokenizer("ViT-B-16")(
        [f"{placeholder} {name}." for name in classnames(n_classes)]
    )
    rows, end = model.token_embedding(tokens), tokens.argmax(dim=1)
    context = (0.02 * torch.randn(n_context, 512)).requires_grad_()
    images = normalize(torch.randn(32, 512), dim=1)
    labels = torch.arange(32) % 2

    def step(classes: int, batch: int) -> tuple[float, Tensor]:
        text = normalize(WAYS[way](model, context, rows[:classes], end[:classes]), dim=1)
        loss = cross_entropy(100 * images[:batch] @ text.T, labels[:batch])
        [gradient] = torch.autograd.grad(loss, context)
        return float(loss.detach()), gradient

    return cost(step(FEW, FEW), lambda: step(n_classes, 32), rounds)


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--classes", type=int, nargs="+", default=[47, 100, 397])
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    measured = partial(measure, n_context=options.context, rounds=options.rounds)
    compare(list(WAYS), options.classes, measured)


if __name__ == "__main__":
    main()

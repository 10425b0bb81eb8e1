"""One step of CLIP-LoRA, both towers, forward and backward: all 77 positions against ours.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.lora_step [--classes 47 100] [--batch-size 32]

plain: all 77 positions of every prompt, every token in the last blocks of both towers, and torch's
dropout. ours: as `train` runs it. shared prefix: the same with `share_prefix=true`. A ViT-B/32 with
random weights on the CPU, with the method's defaults, so with dropout. Prints seconds on the clock
and on the processors, memory above what the process held before (Linux only), the ratio by the
processors' seconds, which other work on the machine hardly changes, and how far loss and gradient
of a small step without dropout are from the plain one's. At 77 positions 100 classes take 6.3 GB,
and 48 MB each further one.
"""

import argparse
from functools import partial

import open_clip
import torch
from torch import Tensor, nn

from benchmarks.plain_text import classnames
from benchmarks.step_cost import FEW, Cost, compare, cost
from cache.models.encoder import wrap
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.methods.clip_lora import CLIPLoRA

WAYS = ("plain", "ours", "shared prefix")


def attached(way: str, clip: Clip, names: list[str]) -> Learner:
    """CLIP-LoRA of these classes in the model, its pairs of some effect."""
    learner = CLIPLoRA(share_prefix=way == "shared prefix").attach(clip, names, [])
    generator = torch.Generator().manual_seed(1)
    for B in list(learner.parameters.values())[1::2]:
        nn.init.normal_(B, std=0.01, generator=generator)
    return learner


def measure(way: str, n_classes: int, *, batch_size: int, rounds: int) -> Cost:
    """The cost of a way."""
    torch.manual_seed(0)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    stock = open_clip.create_model("ViT-B-32")  # with random weights
    encoder = wrap(stock, tokenizer, torch.device("cpu"), name="untrained", arch="ViT-B-32")
    pixels = torch.randn(batch_size, 3, 224, 224)
    labels = torch.arange(batch_size) % 2

    def prepared(n: int) -> Learner:
        clip = Clip.of(encoder)
        learner = attached(way, clip, classnames(n))
        if way == "plain":
            del clip.model.visual.forward  # the class's own: all tokens in the last block
            tokens = clip.tokens([f"a photo of a {name}." for name in classnames(n)])
            learner.text = lambda: clip.model.encode_text(tokens)
            for dropout in learner.modules:
                dropout.__class__ = nn.Dropout  # with torch's masks
        return learner

    def step(learner: Learner, batch: int) -> tuple[float, Tensor]:
        assert learner.images is not None
        loss, _ = learner.loss(learner.images(pixels[:batch]), labels[:batch])
        gradients = torch.autograd.grad(loss, list(learner.parameters.values()))
        return float(loss.detach()), torch.cat([g.flatten() for g in gradients])

    few = step(prepared(FEW), FEW)
    learner = prepared(n_classes)
    for module in learner.modules:
        module.train()
    return cost(few, lambda: step(learner, batch_size), rounds)


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--classes", type=int, nargs="+", default=[47, 100])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    measured = partial(measure, batch_size=options.batch_size, rounds=options.rounds)
    compare(WAYS, options.classes, measured)


if __name__ == "__main__":
    main()

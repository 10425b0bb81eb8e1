"""PLOT for vision transformers: an image seen through several learned tokens, and several prompts.

Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023,
https://arxiv.org/abs/2210.01253; PLOT++ is in the authors' code alone, and this is its recipe. The
code learns, of four sentences for each dataset, as many words as the first one has; here four serve
all datasets, and all their words are learned. Its second stage starts from the tokens of another
run, of seed 1, and has an optimizer of its own; here it continues from the tokens of this run, and
takes over their momentum. It stops Sinkhorn's iteration by the mean over a batch, here each image
by its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cache.errors import UserError
from fewshot.checks import non_negative, positive, whole
from fewshot.endtoend.clip import Clip, EndToEnd, Learner, scaled_cosines
from fewshot.endtoend.parts.dassl import epochs_plan, momentum_sgd
from fewshot.endtoend.parts.deep_prompts import DEVIATION, image_width, prompt_images
from fewshot.endtoend.parts.image_tokens import ImageTokens
from fewshot.endtoend.parts.learned_prompts import LearnedPrompts
from fewshot.endtoend.parts.transport import SeveralPrompts, similarity
from fewshot.endtoend.training_plan import TrainingPlan

WORDS = "a photo of a|this is a photo|this is picture of|one picture of a"


@dataclass(frozen=True)
class PLOTPlusPlus(EndToEnd):
    """M sets of tokens in the image tower, N contexts in the text tower; logits as PLOT's.

    An image runs through the tower once with each set, inserted where the blocks start, and its M
    features take the place of regions. In the first half of the steps the tokens alone learn, by
    PLOT's logits plus logit_scale times the cosine of the two mean features; in the second half
    the contexts as well, by PLOT's logits.

    Attributes:
        n_sets: Sets of tokens in the image tower, M.
        n_tokens: Tokens in a set.
        ctx_init: Words that the N contexts start from, with | between one and the next.
        epochs: Passes over the images in either half.
        lr: Maximum learning rate in either half; SGD with momentum, down along a cosine epoch by
            epoch.
        weight_decay: Weight decay of SGD.
        batch_size: Images per step.
        text_chunk: Prompts that go through the tower at a time, 0 for all; fewer take less memory
            and a third more work.
        seed: Random seed for the tokens.
    """

    n_sets: int = 4
    n_tokens: int = 2
    ctx_init: str = WORDS
    epochs: int = 50
    lr: float = 0.002
    weight_decay: float = 5e-4
    batch_size: int = 32
    text_chunk: int = 0
    seed: int = 1

    name: ClassVar[str] = "plot++"
    summary: ClassVar[str] = (
        "Looks at each photo in several learned ways and matches these with several sentences."
    )
    published: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole(self, "n_sets", "n_tokens", "epochs", "batch_size")
        whole(self, "text_chunk", minimum=0, hint="0 is all at once")
        positive(self, "lr")
        non_negative(self, "weight_decay")
        if not all(words.strip() for words in self.ctx_init.split("|")):
            raise UserError(
                f"ctx_init must be words, with | between one context and the next; got "
                f"{self.ctx_init!r}; leave none empty"
            )

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """Tokens and contexts are trained; the dataset's templates play no part."""
        ImageTokens.of(clip, self.name)
        prompts = SeveralPrompts(
            [
                LearnedPrompts.of(
                    clip, classnames, n_ctx=0, ctx_init=words.strip(), seed=self.seed,
                    chunk=self.text_chunk,
                )
                for words in self.ctx_init.split("|")
            ]
        )  # fmt: skip
        generator = torch.Generator().manual_seed(self.seed)
        shape = self.n_sets, self.n_tokens, image_width(clip)
        drawn = torch.empty(*shape).normal_(std=DEVIATION, generator=generator)
        tokens = nn.Parameter(drawn.to(clip.device))
        prompt_images(clip, 1, self.n_tokens, lambda block: tokens[inserted], [tokens])
        inserted = 0  # number of the set that is in the tower
        tokens_alone = False  # a trained learner is past that

        def stage(step: int, steps: int) -> None:
            nonlocal tokens_alone
            tokens_alone = step < steps // 2

        def images(pixels: Tensor) -> Tensor:
            nonlocal inserted
            features = []
            for number in range(self.n_sets):
                inserted = number
                features.append(clip.model.encode_image(pixels))
            return torch.stack(features, dim=1)

        def text() -> Tensor:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not tokens_alone):
                return prompts.features()

        def compare(features: Tensor, text: Tensor) -> Tensor:
            logits = clip.logit_scale * similarity(features, text)
            if tokens_alone:
                means = features.float().mean(dim=1), text.float().mean(dim=0)
                logits = logits + scaled_cosines(clip.logit_scale, *means)
            return logits

        return Learner(
            {"tokens": tokens, **prompts.parameters},
            clip.logit_scale,
            text,
            images=images,
            compare=compare,
            stage=stage,
        )

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """So many epochs at any shots, twice, each without its last batch if that is not full."""
        half = epochs_plan(self.epochs, n_images, self.batch_size, self.lr)

        def schedule(epoch: int, done: float) -> float:
            return half.schedule(epoch % self.epochs, 2 * done % 1)

        return replace(half, iterations=2 * half.iterations, schedule=schedule)

    def optimizer(self, learner: Learner) -> Optimizer:
        """SGD with momentum."""
        return momentum_sgd(learner, self.lr, self.weight_decay)

"""Learned prompts at the first blocks of both towers: the part that MaPLe and PromptSRC share.

Both papers replace the first blocks' prompt tokens by learned ones, where VPT inserts them. In the
text tower these are the context, which all classes share, so it still runs once for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fewshot.checks import non_negative, positive, whole
from fewshot.endtoend.clip import Clip, EndToEnd, Learner
from fewshot.endtoend.parts.dassl import epochs_plan, momentum_sgd, require_context
from fewshot.endtoend.parts.image_tokens import ImageTokens, run
from fewshot.endtoend.parts.learned_prompts import LearnedPrompts
from fewshot.endtoend.text_tower import require_open_clips
from fewshot.endtoend.training_plan import TrainingPlan

TECHNIQUE = "prompts in the image tower"  # for errors
DEVIATION = 0.02  # of the normal distribution that prompts are drawn from


class PromptedTransformer(nn.Module):
    """A tower's blocks with learned tokens behind the first so many tokens.

    Attributes:
        resblocks: The blocks.
        before: How many tokens stand before the learned ones.
        blocks: Numbers of those that have learned tokens at their input, in a row.
        prompt: Number of a block to its tokens (l, W).
        learned: What these are made of, so that others see that the tower is trained.
        inserted: The sequence comes without learned tokens and goes without them; otherwise there
            are tokens in their places already, and what becomes of them is left there.
        grad_checkpointing: Keep no activations within a block; open_clip sets it.
    """

    def __init__(
        self,
        transformer: Any,
        blocks: range,
        n_tokens: int,
        prompt: Callable[[int], Tensor],
        *,
        learned: Sequence[nn.Parameter],
        inserted: bool,
        before: int = 1,
    ) -> None:
        super().__init__()
        self.learned = nn.ParameterList(learned)
        self.resblocks = transformer.resblocks
        self.blocks, self.n_tokens, self.prompt = blocks, n_tokens, prompt
        self.inserted, self.before = inserted, before
        self.grad_checkpointing = False

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        """(B, L, W) of (B, L, W)."""
        before = self.before
        rest = before if self.inserted else before + self.n_tokens  # where other tokens start
        for i, block in enumerate(self.resblocks):
            if i in self.blocks:
                learned = self.prompt(i).to(x.dtype).expand(len(x), -1, -1)
                x = torch.cat([x[:, :before], learned, x[:, rest:]], dim=1)
                rest = before + learned.shape[1]
            x = run(block, x, how, again=self.grad_checkpointing)
        return torch.cat([x[:, :before], x[:, rest:]], dim=1) if self.inserted else x


@dataclass(frozen=True, eq=False)
class PromptedText:
    """The text tower of C classes with learned context, at the input and at further blocks.

    Attributes:
        context: (l, W) at the input.
        deeper: (d - 1, l, W) at blocks 1 to d - 1.
        features: To the (C, D) text features, any norm.
    """

    context: nn.Parameter
    deeper: nn.Parameter
    features: Callable[[], Tensor]


@dataclass(frozen=True)
class DeepPrompts(EndToEnd):
    """A method that learns l prompts at each of the first d blocks of both towers.

    The recipe is SGD with momentum, down along a cosine epoch by epoch, from crops and flips.

    Attributes:
        n_ctx: Prompts at each block, l.
        ctx_init: Words that the context starts from: the first l tokens are learned, further ones
            stay between context and name, and fewer are all there is. Empty for normal vectors of
            deviation 0.02.
        depth: First blocks with prompts, d; a tower of fewer blocks has prompts at each.
        epochs: Passes over the images.
        lr: Maximum learning rate.
        weight_decay: Weight decay of SGD.
        batch_size: Images per step.
        text_chunk: Prompts that go through the text tower at a time, 0 for all; fewer take less
            memory and a third more work.
        seed: Random seed for all that is drawn before training.
    """

    n_ctx: int = 4
    ctx_init: str = "a photo of a"
    depth: int = 9
    epochs: int = 50
    lr: float = 0.0025
    weight_decay: float = 5e-4
    batch_size: int = 4
    text_chunk: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        whole(self, "n_ctx", "depth", "epochs", "batch_size")
        whole(self, "text_chunk", minimum=0, hint="0 is all at once")
        positive(self, "lr")
        non_negative(self, "weight_decay")

    def prompt_text(
        self, clip: Clip, classnames: Sequence[str], depth: int, generator: torch.Generator
    ) -> PromptedText:
        """Put the context into the text tower, at its first so many blocks, in place.

        Raises:
            UserError: The text tower takes no embeddings.
        """
        prompts = LearnedPrompts.of(
            clip, classnames, n_ctx=self.n_ctx, ctx_init=self.ctx_init, seed=self.seed,
            chunk=self.text_chunk,
        )  # fmt: skip
        words = prompts.context.detach()
        n_ctx = min(self.n_ctx, len(words))
        drawn = self.drawn(clip, (depth, n_ctx, words.shape[1]), generator)
        context, deeper = nn.Parameter(words[:n_ctx].clone()), nn.Parameter(drawn[1:].clone())
        tower = clip.model.text if hasattr(clip.model, "text") else clip.model
        tower.transformer = PromptedTransformer(
            tower.transformer, range(1, depth), n_ctx, lambda i: deeper[i - 1],
            learned=[context, deeper], inserted=False, before=len(prompts.start),
        )  # fmt: skip

        def features() -> Tensor:
            return prompts.features(torch.cat([context, words[n_ctx:]]))

        return PromptedText(context, deeper, features)

    def depths(self, clip: Clip) -> tuple[int, int]:
        """How many blocks of the text tower and of the image tower have prompts.

        Raises:
            UserError: The image tower is no vision transformer of open_clip's, or the text tower
                takes no embeddings.
        """
        image = ImageTokens.of(clip, self.name).blocks
        towers = (require_open_clips(clip.model).transformer.resblocks, image)
        text_depth, image_depth = (min(self.depth, len(blocks)) for blocks in towers)
        return text_depth, image_depth

    def drawn(self, clip: Clip, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Normal prompts, on the model's device."""
        tokens = torch.empty(*shape).normal_(std=DEVIATION, generator=generator)
        return tokens.to(clip.device)

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """So many epochs at any shots, each without its last batch if that is not full.

        Raises:
            UserError: More context tokens than words that they start from.
        """
        require_context(self.n_ctx, type(self).n_ctx, self.ctx_init, fewer=True)
        return epochs_plan(self.epochs, n_images, self.batch_size, self.lr)

    def optimizer(self, learner: Learner) -> Optimizer:
        """SGD with momentum."""
        return momentum_sgd(learner, self.lr, self.weight_decay)


def image_width(clip: Clip) -> int:
    """W of the image tower's tokens."""
    return ImageTokens.of(clip, TECHNIQUE).width


def prompt_images(
    clip: Clip,
    depth: int,
    n_tokens: int,
    prompt: Callable[[int], Tensor],
    learned: Sequence[nn.Parameter],
) -> None:
    """Insert tokens into the image tower, in place.

    Args:
        clip: The model.
        depth: d.
        n_tokens: l.
        prompt: Number of a block to its tokens (l, W). Those of block 0 go through the norm
            before the blocks, as the image's own do.
        learned: What they are made of.
    """
    vit = ImageTokens.of(clip, TECHNIQUE)
    vit.make_room(n_tokens)

    def normed(block: int) -> Tensor:
        tokens = prompt(block)
        return tokens if block else vit.norm(tokens)

    row = PromptedTransformer(
        vit.tower.transformer, range(depth), n_tokens, normed, learned=learned, inserted=True,
        before=vit.before,
    )  # fmt: skip
    vit.run_by(row)

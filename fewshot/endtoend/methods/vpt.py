"""VPT: learned tokens that a frozen image tower sees beside the image's own.

Jia et al., "Visual Prompt Tuning", ECCV 2022, https://arxiv.org/abs/2203.12119. It does not start
as zero-shot CLIP and cannot: an attention that looks at more tokens looks less at the image's,
whatever the tokens are. Shallow and deep share this file: they differ in the number of blocks.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fewshot.checks import fraction, whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.deep_prompts import PromptedTransformer
from fewshot.endtoend.parts.image_tokens import ImageTokens
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only, uniform_tokens


@dataclass(frozen=True)
class VPTShallow(PEFTMethod):
    """Tokens inserted once, where the blocks start; for CLIP that is behind its first layer norm.

    They stand before the patches, behind the class token and registers if there are any.
    Rotary positions are not for them.

    Attributes:
        n_tokens: Learned tokens, l.
        dropout: Dropout of the tokens.
    """

    n_tokens: int = 10
    dropout: float = 0.0

    name: ClassVar[str] = "vpt-shallow"
    summary: ClassVar[str] = "Shows the model a few learned tokens beside each photo."
    deep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "n_tokens")
        fraction(self, "dropout", below_one=True)

    def insert(self, clip: Clip) -> Inserted:
        """Uniform tokens, in the range that VPT draws them from."""
        vit = ImageTokens.of(clip, self.name)
        depth = len(vit.blocks) if self.deep else 1
        tokens = uniform_tokens(depth, self.n_tokens, vit, self.seed)
        learned, dropout = nn.Parameter(tokens.to(clip.device)), nn.Dropout(self.dropout).eval()
        vit.make_room(self.n_tokens)
        row = PromptedTransformer(
            vit.tower.transformer, range(depth), self.n_tokens, lambda i: dropout(learned[i]),
            learned=[learned], inserted=True, before=vit.before,
        )  # fmt: skip
        vit.run_by(row)
        return {"tokens": learned}, (dropout,)


@dataclass(frozen=True)
class VPTDeep(VPTShallow):
    """Tokens inserted before every block, in place of what the block before made of its own."""

    name: ClassVar[str] = "vpt-deep"
    summary: ClassVar[str] = (
        "Shows every block of the model a few learned tokens beside each photo."
    )
    deep: ClassVar[bool] = True

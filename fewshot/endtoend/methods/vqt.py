"""VQT: learned queries to each block of a frozen image tower, and a classifier of the answers.

Tu et al., "Visual Query Tuning: Toward Effective Usage of Intermediate Representations for
Parameter and Memory Efficient Transfer Learning", CVPR 2023, https://arxiv.org/abs/2212.03220. In
place of the paper's classifier of the last class token stands CLIP's text; the classifier of the
answers is added to it and starts at zero, so that all starts as zero-shot CLIP. No gradient goes
from block to block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fewshot.checks import fraction, whole
from fewshot.endtoend.clip import Clip, Learner, scaled_cosines
from fewshot.endtoend.parts.blocks import is_timms
from fewshot.endtoend.parts.image_tokens import ImageTokens
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only, uniform_tokens


class QueriedTransformer(nn.Module):
    """A tower's blocks, each of which also answers learned queries.

    Attributes:
        queries: (depth, l, W): tokens that look at the others, and that no other sees.
        summaries: (B, depth, l, W) what became of them for the last images.
        before: How many tokens stand before those of the patches.
    """

    summaries: Tensor

    def __init__(self, transformer: Any, queries: Tensor, dropout: float, before: int) -> None:
        super().__init__()
        self.resblocks = transformer.resblocks
        self.queries = nn.Parameter(queries)
        self.dropout = nn.Dropout(dropout)
        self.before = before

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        """(B, L, W) of (B, L, W), as without queries."""
        answer = _timms_answer if is_timms(self.resblocks[0]) else _answer
        summaries = []
        for block, own in zip(self.resblocks, self.queries, strict=True):
            query = self.dropout(own).to(x.dtype).expand(len(x), -1, -1)
            summary, x = answer(block, query, x, self.before, how)
            summaries.append(summary)
        self.summaries = torch.stack(summaries, dim=1)
        return x


Both = tuple[Tensor, Tensor]


def _answer(block: Any, query: Tensor, x: Tensor, before: int, how: dict[str, Any]) -> Both:
    """Answers (B, l, W) to queries (B, l, W), and the block's tokens (B, L, W)."""
    seen = block.ln_1(x)
    attended = block.attn(block.ln_1(query), seen, seen, need_weights=False)[0]
    query = query + block.ls_1(attended)
    return query + block.ls_2(block.mlp(block.ln_2(query))), block(x, **how)


def _timms_answer(block: Any, query: Tensor, x: Tensor, before: int, how: dict[str, Any]) -> Both:
    """The same of timm's block, whose attention takes no queries apart from the tokens.

    They stand among the tokens, before the patches, and a mask hides them from all.
    """
    rest = before + query.shape[1]
    hidden = torch.zeros(1, x.shape[1] + query.shape[1], dtype=x.dtype, device=x.device)
    hidden[:, before:rest] = -torch.inf
    tokens = torch.cat([x[:, :before], query, x[:, before:]], dim=1)
    mask = hidden.expand(tokens.shape[1], -1)
    out = block(tokens, **{**how, "attn_mask": mask})
    return out[:, before:rest], torch.cat([out[:, :before], out[:, rest:]], dim=1)


@dataclass(frozen=True)
class VQT(PEFTMethod):
    """Learned queries to every block; a linear classifier of all answers, beside CLIP's own.

    The logits are CLIP's plus h V^T, h being the answers of all blocks, each of unit norm.

    Attributes:
        n_tokens: Queries per block, l.
        dropout: Dropout of the queries.
    """

    n_tokens: int = 1
    dropout: float = 0.1

    name: ClassVar[str] = "vqt"
    summary: ClassVar[str] = (
        "Asks every block of the model learned questions and classifies by the answers."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "n_tokens")
        fraction(self, "dropout", below_one=True)

    def insert(self, clip: Clip) -> Inserted:
        """Uniform queries, in the range that VPT draws its tokens from."""
        vit = ImageTokens.of(clip, self.name)
        queries = uniform_tokens(len(vit.blocks), self.n_tokens, vit, self.seed)
        vit.make_room(self.n_tokens)
        queried = QueriedTransformer(vit.tower.transformer, queries, self.dropout, vit.before)
        vit.run_by(queried.to(clip.device).eval())
        return {"queries": queried.queries}, (queried.dropout,)

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """The queries and V; an image's features are the tower's (D) and then h."""
        plain = super().attach(clip, classnames, templates)
        visual = clip.model.visual
        queried = getattr(visual, "trunk", visual).transformer
        n_answers = queried.queries.numel()
        V = nn.Parameter(torch.zeros(len(classnames), n_answers, device=clip.device))

        def images(pixels: Tensor) -> Tensor:
            features = clip.model.encode_image(pixels).float()
            answers = normalize(queried.summaries.float(), dim=-1).flatten(1)
            return torch.cat([features, answers], dim=1)

        def score(features: Tensor) -> Tensor:
            own, answers = features[:, :-n_answers], features[:, -n_answers:]
            cosines = scaled_cosines(clip.logit_scale, own, plain.text())
            with torch.autocast(features.device.type, enabled=False):
                return cosines + answers @ V.T

        return replace(plain, parameters={**plain.parameters, "V": V}, images=images, score=score)

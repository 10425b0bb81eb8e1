"""Low-rank updates of both towers' attention, trained on the few shots.

Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops 2024,
https://arxiv.org/abs/2405.18541. As the authors' code has it: s = alpha / sqrt(r), and one template
for all datasets. The paper's s of 1 is alpha = sqrt(r). The code draws its validation images before
its training images, so its few shots are not CoOp's; here they are, unless --official asks for
theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.optim import AdamW, Optimizer

from cache.errors import UserError
from fewshot.endtoend import text_tower
from fewshot.endtoend.clip import Clip, EndToEnd, Learner, Plan
from fewshot.endtoend.parts.lora import LoRA, Position, Towers, attach_lora, parameters
from fewshot.endtoend.parts.lora_pro import LoRAPro
from fewshot.training import cosine_by_step


@dataclass(frozen=True)
class CLIPLoRA(EndToEnd):
    """Pairs A, B beside query, key and value of every block: W x + s B A dropout(x).

    Attributes:
        rank: r.
        alpha: s = alpha / sqrt(r).
        dropout: Share of the inputs to A that are zeroed in training.
        matrices: Of q, k, v, o, fc1 and fc2, those that get a pair, with commas.
        towers: Which of the two.
        position: Which blocks, counted from the input.
        template: The prompt, with {} for the class name; empty for the dataset's own first one.
        iterations_per_shot: Steps, times K.
        lr: Greatest learning rate, down to 1e-6 along half a cosine.
        weight_decay: AdamW's.
        batch_size: Images per step.
        pro: Let LoRA-Pro choose the steps (https://arxiv.org/abs/2407.18242) instead of AdamW.
        text_chunk: Prompts that go through the tower at a time, 0 for all; fewer take less memory
            and a third more work.
        seed: Of A.
    """

    rank: int = 2
    alpha: float = 1.0
    dropout: float = 0.25
    matrices: str = "q,k,v"
    towers: Towers = "both"
    position: Position = "all"
    template: str = "a photo of a {}."
    iterations_per_shot: int = 500
    lr: float = 2e-4
    weight_decay: float = 1e-2
    batch_size: int = 32
    pro: bool = False
    text_chunk: int = 0
    seed: int = 1

    name: ClassVar[str] = "clip-lora"
    published: ClassVar[bool] = True
    val_first: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.iterations_per_shot < 1 or self.batch_size < 1 or not self.lr > 0:
            raise UserError(
                "iterations_per_shot, batch_size and lr must be more than 0; got "
                f"{self.iterations_per_shot}, {self.batch_size} and {self.lr}"
            )
        if self.template and "{}" not in self.template:
            raise UserError(f"template must have {{}} for the class name; got {self.template!r}")

    @property
    def on_images(self) -> bool:
        """Unless the pairs are in the text tower alone."""
        return self.towers != "text"

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """Put the pairs in; both towers run live where they have some."""
        pairs = attach_lora(
            clip.model,
            towers=self.towers,
            matrices=tuple(self.matrices.split(",")),  # type: ignore[arg-type]  # checked there
            position=self.position,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            generator=torch.Generator().manual_seed(self.seed),
        )
        template = self.template or templates[0]
        tokens = clip.tokens([template.format(name.replace("_", " ")) for name in classnames])
        chunk = self.text_chunk or None

        def text() -> torch.Tensor:
            # With dropout every prompt is to have a draw of its own, as in the authors' code.
            alone = self.dropout > 0 and any(pair.training for pair in pairs.values())
            return text_tower.encode(
                clip.model,
                tokens,
                share_prefix=not alone,
                chunk=chunk,
                checkpointing=chunk is not None,
            )

        if self.towers == "image":
            with torch.no_grad(), clip.autocast():
                frozen = text()
            text = lambda: frozen  # noqa: E731
        return Learner(
            parameters(pairs),
            clip.logit_scale,
            text,
            images=None if self.towers == "text" else clip.model.encode_image,
            modules=tuple(pairs.values()),
        )

    def plan(self, shots: int, n_images: int) -> Plan:
        """500 K steps, whatever the number of classes."""
        return Plan(
            iterations=self.iterations_per_shot * shots,
            batch_size=self.batch_size,
            schedule=cosine_by_step(self.lr, 1e-6),
        )

    def optimizer(self, learner: Learner) -> Optimizer:
        """AdamW on A and B, or LoRA-Pro on the pairs."""
        if self.pro:
            pairs = [(m.A, m.B, m.scale) for m in learner.modules if isinstance(m, LoRA)]
            return LoRAPro(pairs, self.lr, weight_decay=self.weight_decay)
        return AdamW(
            learner.parameters.values(), lr=self.lr, weight_decay=self.weight_decay, fused=False
        )

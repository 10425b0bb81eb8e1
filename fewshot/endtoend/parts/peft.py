"""The base of parameter-efficient methods: the classifier, the steps and the optimizer.

The recipe is CLIP-LoRA's (https://arxiv.org/abs/2405.18541), which was made for few shots of CLIP;
the methods' own were made for other backbones, more images and a classifier learned from nothing.
Most bring the learning rate of their paper; CLIP's text takes the place of that classifier.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import AdamW, Optimizer

from cache.errors import UserError
from cache.prompts import filled
from fewshot.checks import non_negative, one_of, positive, whole
from fewshot.endtoend import text_tower
from fewshot.endtoend.clip import Clip, EndToEnd, Learner
from fewshot.endtoend.parts.blocks import Towers
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.training import cosine_by_step

Head = Literal["frozen", "trained"]
Inserted = tuple[Mapping[str, nn.Parameter], Sequence[nn.Module]]  # trained; with dropout
AT_ONCE = 256  # prompts in the text tower where no gradient is wanted


@dataclass(frozen=True)
class PEFTMethod(EndToEnd):
    """A method that trains a few parameters in the towers, and says which in `insert`.

    Attributes:
        towers: Tower or towers that it changes; a text tower that is changed runs in every step.
        head: Text features that images are compared to: `frozen`, or `trained` beside the rest,
            which is for the image tower only. Of a model without text they start as the classes'
            mean image features.
        template: The prompt, with {} for the class name; empty for the dataset's own: the mean of
            all of them, or the first where the text tower is changed.
        iterations_per_shot: Training steps per shot: times K, they are all steps.
        lr: Maximum learning rate, down to 1e-6 along half a cosine.
        weight_decay: Weight decay of AdamW.
        batch_size: Images per step.
        text_chunk: Prompts that go through a changed text tower at a time, 0 for all; fewer take
            less memory and a third more work.
        share_prefix: In training with dropout, the words with which all prompts begin go through a
            changed text tower once, and so share what is dropped of them; without it each prompt
            has a draw of its own, as published.
        seed: Random seed for all that is drawn before training.
    """

    towers: Towers = "image"
    head: Head = "frozen"
    template: str = ""
    iterations_per_shot: int = 500
    lr: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 32
    text_chunk: int = 0
    share_prefix: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        one_of(self, "towers", get_args(Towers))
        one_of(self, "head", get_args(Head))
        if self.head == "trained" and self.towers != "image":
            raise UserError(
                "head must be frozen where the text tower is changed; got trained with "
                f"towers={self.towers}; use towers=image, or head=frozen"
            )
        whole(self, "iterations_per_shot", "batch_size")
        whole(self, "text_chunk", minimum=0, hint="0 is all at once")
        positive(self, "lr")
        non_negative(self, "weight_decay")
        if self.template and "{}" not in self.template:
            raise UserError(f"template must have {{}} for the class name; got {self.template!r}")

    @abstractmethod
    def insert(self, clip: Clip) -> Inserted:
        """Change the towers in place; what is trained, by name, and the modules with dropout.

        Raises:
            UserError: The model has no place for it.
        """

    @property
    def on_images(self) -> bool:
        """Unless the text tower alone is changed."""
        return self.towers != "text"

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """Change the towers that are to be, and compare images with text as CLIP does.

        Several methods can be attached to one model, one after the other, and then act together;
        where the order or the pair makes no sense, the later one is refused.
        """
        if hasattr(getattr(clip.model.visual, "transformer", None), "queries"):
            raise UserError(
                f"vqt classifies by more than the image's features, which {self.name} would not "
                "see; attach vqt last"
            )
        chosen = [self.template] if self.template else list(templates)
        fixed = self._head(clip, classnames, chosen) if self.towers == "image" else None
        if fixed is None and not clip.reads_text:
            raise UserError(f"{_no_text(clip)}; {self.name} changes a text tower; use towers=image")
        inserted, modules = self.insert(clip)
        parameters = dict(inserted)
        if fixed is None:
            tokens = clip.tokens(filled(chosen[0], classnames))
            chunk = self.text_chunk or None

            def text() -> Tensor:
                drops = any(module.training for module in modules)
                return text_tower.encode(
                    clip.model,
                    tokens,
                    share_prefix=self.share_prefix or not drops,
                    chunk=chunk,
                    checkpointing=chunk is not None,
                )

        else:
            classes = nn.Parameter(fixed, self.head == "trained")
            if self.head == "trained":
                parameters["head"] = classes

            def text() -> Tensor:
                return classes

        def start_from_means(batches: Iterable[Tensor], labels: Tensor) -> None:
            head = parameters["head"]
            with torch.no_grad(), clip.autocast():
                head.copy_(class_means(clip, batches, labels, len(head)))

        return Learner(
            parameters,
            clip.logit_scale,
            text,
            calibrate=None if clip.reads_text else start_from_means,
            images=clip.model.encode_image if inserted and self.towers != "text" else None,
            modules=modules,
        )

    def _head(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(C, D) of the classes' text; of a model of images alone zero, until there are images."""
        if clip.reads_text:
            return class_text(clip, classnames, templates)
        if self.head == "frozen":
            raise UserError(
                f"{_no_text(clip)}, so there is no text to compare with; {self.name} must train "
                "the classes too: use --set head=trained"
            )
        return torch.zeros(len(classnames), int(clip.identity["dim"]), device=clip.device)

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """500 K steps, whatever the number of classes."""
        return TrainingPlan(
            iterations=self.iterations_per_shot * shots,
            batch_size=self.batch_size,
            schedule=cosine_by_step(self.lr, 1e-6),
        )

    def optimizer(self, learner: Learner) -> Optimizer:
        """AdamW on all that is trained."""
        return AdamW(
            learner.parameters.values(), lr=self.lr, weight_decay=self.weight_decay, fused=False
        )


def class_means(clip: Clip, batches: Iterable[Tensor], labels: Tensor, n_classes: int) -> Tensor:
    """(C, D) unit norm: the mean of each class's unit-norm image features.

    Args:
        clip: The model.
        batches: All N images, in order, (B, 3, H, W) at a time.
        labels: (N,) class ids.
        n_classes: C.
    """
    features = [clip.model.encode_image(pixels.to(clip.device)) for pixels in batches]
    unit = normalize(torch.cat(features).float(), dim=-1)
    sums = unit.new_zeros(n_classes, unit.shape[1]).index_add_(0, labels.to(clip.device), unit)
    return normalize(sums, dim=-1)


def _no_text(clip: Clip) -> str:
    return f"{clip.identity['name']} encodes images alone"


def class_text(clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(C, D) unit norm, without gradient: the mean of each class's prompts, one per template."""
    features = []
    with torch.no_grad(), clip.autocast():
        for template in templates:
            tokens = clip.tokens(filled(template, classnames))
            prompts = text_tower.encode(clip.model, tokens, chunk=AT_ONCE)
            features.append(normalize(prompts.float(), dim=-1))
    return normalize(torch.stack(features).mean(dim=0), dim=-1)

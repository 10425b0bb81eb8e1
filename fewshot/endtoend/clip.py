"""A CLIP to train: a private copy of an encoder's towers, and what a method makes of it."""

import contextlib
import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim import Optimizer

from cache.errors import UserError
from cache.images.preprocessing import Preprocess
from cache.models.encoder import PRECISIONS, Encoder
from fewshot.endtoend.attention import unfuse
from fewshot.endtoend.last_block import pool_early
from fewshot.endtoend.parts.black_box import Search
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.method import MethodInfo


@dataclass(frozen=True, eq=False)
class Clip:
    """A model's towers, frozen, in eval mode, with separate query, key and value projections.

    Attributes:
        model: open_clip's module, which is untyped, or `ImageOnly`; attention of the kinds that
            `attention.unfuse` knows is taken apart.
        tokenizer: Prompts to (P, L) token ids.
        preprocess: PIL image to (3, H, W).
        device: Where it runs.
        precision: "fp32", or the autocast type "bf16" or "fp16".
        logit_scale: The model's inverse temperature.
        identity: What a result records of the model.
    """

    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    preprocess: Preprocess
    device: torch.device
    precision: str
    logit_scale: float
    identity: Mapping[str, Any]

    @classmethod
    def of(cls, encoder: Encoder) -> "Clip":
        """A copy, so that the encoder stays what its store was made with."""
        model = copy.deepcopy(encoder.model)
        unfuse(model)
        pool_early(model.visual)
        model.eval().requires_grad_(False)
        return cls(
            model,
            encoder.tokenizer,
            encoder.preprocess,
            encoder.device,
            encoder.precision,
            float(encoder.identity["logit_scale"]),
            encoder.identity,
        )

    @property
    def reads_text(self) -> bool:
        """False for a model without a text tower."""
        return hasattr(self.model, "encode_text")

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """(P, L) token ids of P prompts, on the model's device."""
        return self.tokenizer(list(prompts)).to(self.device)

    def save_memory(self) -> None:
        """Keep no activations within a block of the towers but compute them again for gradients.

        Exact, a third more work, and much less memory; a ResNet's image tower is left as it is.
        """
        of_both = getattr(self.model, "set_grad_checkpointing", None)
        (of_both or self.model.visual.set_grad_checkpointing)(True)

    @property
    def steadier(self) -> str:
        """The remedies where a number is not finite, for the end of an error.

        bf16 has the range of fp32, so that another precision helps float16 alone.
        """
        other = ", or --precision bf16 or fp32" if self.precision == "fp16" else ""
        return f"use a smaller lr{other}"

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run in the model's precision; float32 weights stay float32."""
        enabled = self.precision != "fp32"
        with torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=enabled):
            yield


@dataclass(eq=False)
class Learner:
    """A CLIP with something in it that learns.

    Attributes:
        parameters: Name -> what is trained and saved, and nothing else.
        logit_scale: CLIP's inverse temperature.
        text: The classes' (C, D) features of the parameters as they are, any norm.
        images: Pixels (B, 3, H, W) to features (B, D), any norm; None where the image tower is
            left alone and stored features serve. Columns behind the D are for the objective alone.
        compare: Features and the classes' text to logits (B, C), either of a form of its own; None
            for the scaled cosine.
        score: Features (B, D) to logits (B, C), where no text of their own is behind all of them.
        objective: Features, labels (B,) and their logits to the loss; None for cross-entropy. For
            its sake features may be longer than text; the logits are of their first D numbers.
        refine: Those cosines to the logits; None for themselves.
        search: Crops (N, D) by their number, labels (N,) and the number of generations to the
            search that finds the parameters; None where gradients do.
        penalty: Of the classes' text, as `text` gives it, what is added to the loss; None for
            nothing.
        modules: What is in training mode while it trains, for the sake of dropout.
        calibrate: Called before training with the center crops of the few shots, a batch of pixels
            at a time and in order, and their (N,) labels; None where nothing depends on them.
        survey: Called before training with (U, D) features that the untrained model has of the
            center crops of unlabeled images; None where the images have labels. Then the images'
            numbers, 0 to U - 1, take the place of labels in `objective`.
        stage: Called before each training step with its number, from 0, and the number of all
            steps; None where all steps are alike.
        chosen: Name -> what `calibrate` chose and no gradient moves; saved with the parameters.
        memory: Name -> what a step leaves to later ones beside the parameters, such as a teacher;
            part of checkpoints alone.
    """

    parameters: Mapping[str, nn.Parameter]
    logit_scale: float
    text: Callable[[], Tensor]
    images: Callable[[Tensor], Tensor] | None = None
    compare: Callable[[Tensor, Tensor], Tensor] | None = None
    score: Callable[[Tensor], Tensor] | None = None
    objective: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    refine: Callable[[Tensor], Tensor] | None = None
    search: Callable[[Callable[[int], Tensor], Tensor, int], Search] | None = None
    penalty: Callable[[Tensor], Tensor] | None = None
    modules: Sequence[nn.Module] = field(default_factory=tuple)
    calibrate: Callable[[Iterable[Tensor], Tensor], None] | None = None
    survey: Callable[[Tensor], None] | None = None
    stage: Callable[[int, int], None] | None = None
    chosen: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> dict[str, float]:
        """How many numbers are trained, as a measure of a result."""
        return {"trained_parameters": float(sum(p.numel() for p in self.parameters.values()))}

    def state(self) -> dict[str, Tensor]:
        """The difference of this learner from one just attached, by name; shares its memory."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()} | {
            f"chosen/{name}": tensor for name, tensor in self.chosen.items()
        }

    @torch.no_grad()
    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Become the learner whose `state` was saved.

        Raises:
            UserError: A name is missing or too many, or of another shape.
        """
        here = self.state()
        shapes = [{n: tuple(t.shape) for n, t in tensors.items()} for tensors in (here, saved)]
        if shapes[0] != shapes[1]:
            wrong = sorted(dict(shapes[0].items() ^ shapes[1].items()))[0]
            raise UserError(
                f"what was saved does not fit: {wrong} is {shapes[1].get(wrong, 'not there')}, "
                f"expected {shapes[0].get(wrong, 'no such thing')}; train again"
            )
        for name, tensor in here.items():
            tensor.copy_(saved[name])

    def logits(self, features: Tensor) -> Tensor:
        """(B, C) float32 logits of (B, D) features of any norm."""
        if self.score is not None:
            return self.score(features)
        text = self.text()
        if self.compare is not None:
            return self.compare(features, text)
        if self.objective is not None:  # what stands behind the feature is for it alone
            features = features[:, : text.shape[1]]
        cosines = scaled_cosines(self.logit_scale, features, text)
        if self.refine is None:
            return cosines
        with torch.autocast(features.device.type, enabled=False):
            return self.refine(cosines)

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The scalar that a step minimizes, and the (B, C) logits it was computed from."""
        if self.penalty is not None:
            text = self.text()
            once = replace(self, text=lambda: text, penalty=None)
            loss, logits = once.loss(features, labels)
            return loss + self.penalty(text), logits
        logits = self.logits(features)
        if self.objective is not None:
            return self.objective(features, labels, logits), logits
        return cross_entropy(logits, labels), logits

    def frozen(self) -> "Learner":
        """The same with the classes' text computed once, for testing."""
        if self.score is not None:
            return self
        text = self.text().detach()
        return replace(self, text=lambda: text)


def scaled_cosines(scale: float, features: Tensor, text: Tensor) -> Tensor:
    """(B, C) float32 logits of features (B, D) and text (C, D) of any norms, autocast or not."""
    with torch.autocast(features.device.type, enabled=False):
        return scale * normalize(features.float(), dim=-1) @ normalize(text.float(), dim=-1).T


class EndToEnd(MethodInfo):
    """A method that needs gradients through the towers: a frozen dataclass of hyper-parameters.

    Attributes:
        unfoldable: Why the trained model is not open_clip's two towers with other weights and a
            matrix of classes, in words; empty where it is.
        published: True if the defaults are a published recipe for few shots of CLIP.
        step_name: What progress calls a step of the training.
        val_first: True if that recipe draws validation images too, and so other few shots.
    """

    unfoldable: ClassVar[str] = (
        "what it adds to the towers is no change of their weights, and open_clip's own have no "
        "place for it"
    )
    published: ClassVar[bool] = False
    val_first: ClassVar[bool] = False
    step_name: ClassVar[str] = "step"

    @property
    def on_images(self) -> bool:
        """True if it changes the image tower, so that it needs images and not stored features."""
        return True

    @property
    def reads_prompts(self) -> bool:
        """True if each step has the text tower read every class's prompt, as progress can say."""
        return False

    @abstractmethod
    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """Put into the model what the method trains.

        Args:
            clip: A copy of its own, which is changed.
            classnames: C names.
            templates: The dataset's prompts, with {} for the name.

        Raises:
            UserError: The model has no place for it.
        """

    @abstractmethod
    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """How to train on N images, K of each class."""

    def steps(self, shots: int, n_classes: int, n_train: int) -> int:
        """The steps of training on K images of each of C classes, or on all N without labels."""
        return self.plan(shots, n_train if self.unsupervised() else shots * n_classes).iterations

    @abstractmethod
    def optimizer(self, learner: Learner) -> Optimizer:
        """The optimizer of the learner's parameters.

        The plan sets its learning rate: all of it, or of a group the share `lr_share`.
        """

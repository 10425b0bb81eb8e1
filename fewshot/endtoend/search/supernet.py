"""A composition of full width: its narrower ones learn together, and each can be judged."""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cache.datasets.source import Item, Source
from cache.models.encoder import Encoder
from fewshot.endtoend.about import about_training
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.methods.composition import Composition
from fewshot.endtoend.parts.elastic import Place, elastic, narrow
from fewshot.endtoend.photos import PhotoBatches, center_crops
from fewshot.endtoend.train import Watch, train
from fewshot.endtoend.training_plan import TrainingPlan

AT_ONCE = 64  # images per forward pass where nothing learns


@dataclass(frozen=True, eq=False)
class Supernet:
    """A composition of full width in a model of its own, and the images that it is for.

    Attributes:
        composition: Of the maximum width in every block.
        choices: The widths that narrower ones have, 0 among them.
        plan: How it trains.
        source: The dataset.
        learned: N images to learn from.
        judged: V others, to judge compositions by.
        seed: Of all that is random.
        workers: Threads that decode.
        encoder: The model as it was.
    """

    composition: Composition
    choices: tuple[int, ...]
    plan: TrainingPlan
    source: Source
    learned: Sequence[Item]
    judged: Sequence[Item]
    seed: int
    workers: int
    encoder: Encoder

    @cached_property
    def clip(self) -> Clip:
        """The model that the composition is put into."""
        return Clip.of(self.encoder)

    @cached_property
    def learner(self) -> Learner:
        """The composition in it.

        Raises:
            UserError: The model has no place for a part.
        """
        learner = self.composition.attach(self.clip, self.source.classnames, self.source.templates)
        return replace(learner, images=learner.images or self.clip.model.encode_image)

    @property
    def about(self) -> str:
        """All that the trained supernet depends on."""
        labels = torch.tensor([item.label for item in self.learned])
        training = about_training(
            self.composition, self.plan, self.encoder, self.source, self.source.classnames,
            [item.path for item in self.learned], labels, seed=self.seed,
        )  # fmt: skip
        return json.dumps({"supernet": json.loads(training), "choices": self.choices})

    def train(self, checkpoint: Path, watch: Watch) -> None:
        """Train, in each step, the composition of random widths; resumes from its checkpoint."""
        learner = self.learner
        paths = [item.path for item in self.learned]
        labels = torch.tensor([item.label for item in self.learned])
        places = dict.fromkeys(module.place for module in elastic(self.clip.model))

        def narrowed(step: int, _: int) -> None:
            rng = random.Random(f"{self.seed} {step}")
            narrow(self.clip.model, {place: rng.choice(self.choices) for place in places})

        if learner.calibrate is not None:
            learner.calibrate(self._crops(self.learned), labels)
        photos = PhotoBatches(
            self.source, paths, self.clip.preprocess, crop_scale=self.plan.crop_scale,
            flip=self.plan.flip, seed=self.seed, workers=self.workers,
        )  # fmt: skip
        train(
            replace(learner, stage=narrowed), self.clip, self.plan,
            self.composition.optimizer(learner), photos, labels,
            seed=self.seed, checkpoint=checkpoint, about=self.about, watch=watch,
        )  # fmt: skip

    @torch.no_grad()
    def judge(self, widths: Mapping[Place, int]) -> tuple[int, float]:
        """How many judged images the composition of these widths has right, and the summed loss."""
        narrow(self.clip.model, widths)
        right, loss = 0, 0.0
        with self.clip.autocast():
            fixed = self.learner.frozen()
            assert self.learner.images is not None
            for pixels, labels in self._judged:
                logits = fixed.logits(self.learner.images(pixels.to(self.clip.device))).cpu()
                right += int((logits.argmax(dim=1) == labels).sum())
                loss += float(cross_entropy(logits, labels, reduction="sum"))
        return right, loss if math.isfinite(loss) else math.inf

    @cached_property
    def _judged(self) -> list[tuple[Tensor, Tensor]]:
        """Pixels (B, 3, H, W) and class ids (B,) of the judged images, decoded once."""
        labels = torch.tensor([item.label for item in self.judged])
        return list(zip(self._crops(self.judged), torch.split(labels, AT_ONCE), strict=True))

    def _crops(self, items: Sequence[Item]) -> Iterator[Tensor]:
        return center_crops(
            self.source, [item.path for item in items], self.clip.preprocess,
            batch_size=AT_ONCE, workers=self.workers,
        )  # fmt: skip

"""The steps of a training: everything random in each is a function of the seed and its number."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from cache.errors import UserError
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.loss_scale import LossScale
from fewshot.endtoend.privacy import private_gradients
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.training import step_seed

Batches = Callable[[Tensor, int], Tensor]  # rows (B,), epoch -> pixels (B, 3, H, W) or (B, D)


@dataclass(frozen=True, eq=False)
class TrainingSteps:
    """A training's steps: the images of each, its learning rate and its gradients.

    Attributes:
        learner: As in `train`, like the rest.
        clip: The model.
        plan: How.
        batches: The images, by row of `labels`.
        labels: (N,) class ids.
        seed: Of all that is random.
    """

    learner: Learner
    clip: Clip
    plan: TrainingPlan
    batches: Batches
    labels: Tensor
    seed: int

    @property
    def size(self) -> int:
        """Images of a step."""
        return min(self.plan.batch_size, len(self.labels))

    @property
    def of_epoch(self) -> int:
        """Steps of an epoch."""
        n = len(self.labels)
        return n // self.size if self.plan.drop_last else math.ceil(n / self.size)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The images of a step, and their (B,) labels."""
        epoch, at = divmod(step, self.of_epoch)
        if self.plan.privacy is None:
            balanced_by = self.labels if self.plan.balanced else None
            order = _order(len(self.labels), self.seed, epoch, balanced_by)
            rows = order[at * self.size : (at + 1) * self.size]
        else:
            rows = self.plan.privacy.rows(self.seed, step)
        given = self.batches(rows, epoch) if len(rows) else torch.empty(0)
        # A GPU copies from pinned memory while it computes.
        return given.pin_memory() if self.clip.device.type == "cuda" else given, self.labels[rows]

    def set_rate(self, step: int, optimizer: Optimizer) -> float:
        """The learning rate of a step, which the optimizer then has."""
        if self.learner.stage is not None:
            self.learner.stage(step, self.plan.iterations)
        rate = self.plan.schedule(step // self.of_epoch, step / self.plan.iterations)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_share", 1.0)
        return rate

    def gradients(
        self, step: int, given: Tensor, truth: Tensor, scaler: LossScale
    ) -> tuple[float, float]:
        """Loss and accuracy of a batch, of which the parameters get the gradients.

        Raises:
            UserError: The loss is not finite.
        """
        given = given.to(self.clip.device, non_blocking=True)
        truth = truth.to(self.clip.device)
        privacy = self.plan.privacy
        if privacy is None:
            with self.clip.autocast():
                loss, logits = self._loss(given, truth)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        else:
            with self.clip.autocast():
                loss, logits = private_gradients(
                    self.clip.model, self._loss, self.learner.parameters, given, truth,
                    clip=privacy.clip, noise=privacy.noise, expected=self.size,
                    draw=privacy.draw(self.seed, step, 1),
                )  # fmt: skip
        # After that, since a GPU is waited for to look at the loss.
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {float(loss.detach())} in step {step + 1} of "
                f"{self.plan.iterations}; {self.clip.steadier}"
            )
        right = math.nan
        if self.learner.survey is None:
            right = float((logits.argmax(dim=1) == truth).float().mean())
        return float(loss.detach()), right

    def _loss(self, given: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        images = self.learner.images
        return self.learner.loss(given if images is None else images(given), truth)

    def average(self, step: int, averages: Mapping[str, Tensor]) -> None:
        """At the end of an epoch, add its share of the parameters to the averages."""
        epoch, at = divmod(step + 1, self.of_epoch)
        if at == 0:
            for name, average in averages.items():
                parameter = self.learner.parameters[name].detach()
                average.add_(parameter, alpha=self.plan.epoch_shares[epoch - 1])


def _order(n: int, seed: int, epoch: int, balanced_by: Tensor | None = None) -> Tensor:
    """(n,) a permutation that depends on seed and epoch alone.

    Or, with labels (n,) to balance by, draws with replacement, of every class alike often.
    """
    generator = torch.Generator().manual_seed(step_seed(seed, epoch))
    if balanced_by is not None:
        weights = 1 / torch.bincount(balanced_by)[balanced_by].double()
        return torch.multinomial(weights, n, replacement=True, generator=generator)
    return torch.randperm(n, generator=generator)

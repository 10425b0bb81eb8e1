"""Steps per second and memory of training; `benchmarks.gpu` prints them."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.device_time import seconds
from benchmarks.plain_text import classnames, with_context
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip, EndToEnd, Learner
from fewshot.endtoend.methods.coop import CoOp
from fewshot.tables import Number

WARM, STEPS, IMAGES = 3, 10, 32  # steps before those that count, these, and images in each


@dataclass(frozen=True)
class Training:
    """A method's step on so many classes."""

    method: EndToEnd
    n_classes: int
    plain: bool

    def learner(self, clip: Clip) -> Learner:
        """The method's, or the same with text from all 77 positions of every prompt."""
        names = classnames(self.n_classes)
        learner = self.method.attach(clip, names, ["a photo of a {}."])
        if self.plain:
            learner.text = self._plain_text(clip, learner, names)
        return learner

    def _plain_text(
        self, clip: Clip, learner: Learner, names: Sequence[str]
    ) -> Callable[[], Tensor]:
        model: Any = clip.model
        if not isinstance(self.method, CoOp):
            tokens = clip.tokens([f"a photo of a {name}." for name in names])
            return lambda: model.encode_text(tokens)
        context = learner.parameters["context"]
        tokens = clip.tokens([f"{'X ' * len(context)}{name}." for name in names])
        with torch.no_grad():
            rows, end = model.token_embedding(tokens), tokens.argmax(dim=1)
        return lambda: with_context(model, context, rows, end)

    def steps(self, encoder: Encoder) -> tuple[Number, Number, float]:
        """Steps per second (median), peak memory in GiB (NaN on a CPU), loss without dropout."""
        clip = Clip.of(encoder)
        learner = self.learner(clip)
        optimizer = self.method.optimizer(learner)
        device, generator = clip.device, torch.Generator().manual_seed(1)
        size = clip.preprocess.size
        shape = (IMAGES, encoder.dim) if learner.images is None else (IMAGES, 3, size, size)
        given = torch.randn(shape, generator=generator).to(device)
        labels = torch.arange(IMAGES, device=device) % 2
        scaler = torch.amp.GradScaler(device.type, enabled=clip.precision == "fp16")

        def loss() -> Tensor:
            with clip.autocast():
                features = given if learner.images is None else learner.images(given)
                return learner.loss(features, labels)[0]

        def step() -> None:
            optimizer.zero_grad()
            scaler.scale(loss()).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()

        with torch.no_grad():
            first = float(loss())
        for module in learner.modules:
            module.train()
        for _ in range(WARM):
            step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        times = [seconds(step, device) for _ in range(STEPS)]
        peak = float("nan")
        if device.type == "cuda":
            peak = (torch.cuda.max_memory_allocated() - held) / 2**30
        return Number(1 / statistics.median(times)), Number(peak, digits=2), first

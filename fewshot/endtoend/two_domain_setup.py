"""All of a training on two domains that is settled before the work."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from cache.datasets.source import Source
from cache.models.encoder import Encoder
from fewshot.domain_adaptation import relation
from fewshot.endtoend.about import about_training
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.crops import augmented, chosen_by_hand
from fewshot.endtoend.methods.live_two_stage import LiveTwoStage
from fewshot.endtoend.requirements import require_classes, require_splits
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.endtoend.training_set import TrainingSet
from fewshot.protocol import Protocol
from fewshot.run import Run
from fewshot.support import unlabeled


@dataclass(frozen=True, eq=False)
class TwoDomainSetup:
    """A training on two domains that can start.

    Attributes:
        method: With the settings that the protocol fixes.
        drawn: The source's images to learn from.
        paths: The target's, without labels.
        unknown: True where some of these may be of classes that the source does not have.
        clip: The model that the learner is part of.
        learner: Stage 1 in it.
        plan: How stage 1 trains.
        run: What the result will be of.
        about_source: All that the outcome of stage 1 depends on, as text.
        about: All that the outcome of both stages depends on, as text.
        chosen: Choices about images, as the result records them.
    """

    method: LiveTwoStage
    drawn: TrainingSet
    paths: list[str]
    unknown: bool
    clip: Clip
    learner: Learner
    plan: TrainingPlan
    run: Run
    about_source: str
    about: str
    chosen: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        method: LiveTwoStage,
        protocol: Protocol,
        encoder: Encoder,
        source: Source,
        target: Source,
        *,
        crop_scale: tuple[float, float] | None,
        flip: bool | None,
        save_memory: bool,
    ) -> "TwoDomainSetup":
        """Settle what `two_domains.run_two_domains` is asked for; the arguments are its own.

        Raises:
            UserError: The method, the datasets or the options do not allow it.
        """
        method = replace(method, **protocol.fixed)
        kind = relation(source, target)
        for one in (source, target):
            require_classes(one, method.name)
            require_splits(one)
        drawn = TrainingSet.of(method, source, protocol, val_first=False)
        paths = [item.path for item in target.splits["train"]]
        numbers = unlabeled(torch.arange(len(paths)), method.name)
        clip = Clip.of(encoder)
        learner = method.attach(clip, source.classnames, source.templates)
        if save_memory:
            clip.save_memory()
        plan = augmented(method.plan(drawn.shots, len(drawn.paths)), crop_scale, flip)
        chosen = chosen_by_hand(
            method, live=True, has_val=False, crop_scale=crop_scale, flip=flip, official=False
        )
        run = Run.planned(
            method,
            replace(protocol, fixed={**protocol.fixed, **chosen}),
            dataset=target.dataset,
            model=str(encoder.identity["name"]),
            fingerprint=str(encoder.identity["weights"]),
            fitted_on=source.dataset,
            shots=drawn.shots,
            fewest=drawn.shots,
            n_views=0,
        )
        about_source = about_training(
            method, plan, encoder, source, source.classnames, drawn.paths, drawn.labels,
            seed=protocol.seed, contents=False,
        )  # fmt: skip
        about = about_source + about_training(
            method, plan, encoder, target, target.classnames, paths, numbers, seed=protocol.seed
        )
        unknown = kind in ("open", "universal")
        return cls(
            method, drawn, paths, unknown, clip, learner, plan, run, about_source, about, chosen
        )

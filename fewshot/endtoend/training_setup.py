"""All of a training that is settled before the work: its images, its model, its plan, its run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cache.datasets.source import Source
from cache.models.encoder import Encoder
from cache.store import FeatureStore
from fewshot.endtoend.about import about_training
from fewshot.endtoend.class_halves import ClassHalves
from fewshot.endtoend.clip import Clip, EndToEnd, Learner
from fewshot.endtoend.crops import augmented, chosen_by_hand, crops_asked, learns_live
from fewshot.endtoend.requirements import (
    WITHOUT_STORE,
    require_classes,
    require_few_shots,
    require_images_of_classes,
    require_published,
    require_same_images,
    require_same_weights,
    require_splits,
)
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.endtoend.training_set import TrainingSet
from fewshot.protocol import Protocol
from fewshot.run import Run


@dataclass(frozen=True, eq=False)
class TrainingSetup:
    """A training that can start.

    Attributes:
        method: With the settings that the protocol fixes.
        drawn: The images to learn from.
        clip: The model that the learner is part of.
        learner: The method in it.
        plan: How it trains.
        halves: The base and the new classes, where the setting has them.
        stored: Features to learn from and to test on in place of images, or None.
        run: What the result will be of.
        about: All that the outcome depends on, as text.
        settings: All choices, as the result records them.
    """

    method: EndToEnd
    drawn: TrainingSet
    clip: Clip
    learner: Learner
    plan: TrainingPlan
    halves: ClassHalves | None
    stored: FeatureStore | None
    run: Run
    about: str
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        method: EndToEnd,
        protocol: Protocol,
        encoder: Encoder,
        source: Source,
        store: FeatureStore | None,
        *,
        crop_scale: tuple[float, float] | None,
        flip: bool | None,
        official: bool,
        save_memory: bool,
    ) -> "TrainingSetup":
        """Settle what `experiment.run` is asked for; the arguments are its own.

        Raises:
            UserError: The method, the dataset, the store or the options do not allow it.
        """
        if official:
            every = ["shots all"] if protocol.shots == "all" else []
            asked = [*protocol.fixed, *crops_asked(crop_scale, flip), *every]
            require_published(method, changed=asked)
        method = replace(method, **protocol.fixed)
        require_few_shots(method, protocol)
        require_classes(source, method.name)
        require_splits(source)
        if store is not None:
            require_same_weights(store, encoder, WITHOUT_STORE)
            require_same_images(store, source)
        drawn = TrainingSet.of(method, source, protocol, official and method.val_first)
        names = [source.classnames[k] for k in drawn.classes]
        clip = Clip.of(encoder)
        learner = method.attach(clip, names, source.templates)
        if save_memory:
            clip.save_memory()
        require_images_of_classes(learner, [source.classnames[k] for k in drawn.without_images])
        plan = augmented(method.plan(drawn.mean_shots, len(drawn.paths)), crop_scale, flip)
        halves = ClassHalves.of(method, encoder, source, learner, protocol, store)
        n_views = store.split("train").n_views * protocol.views if store else 0
        live = learns_live(on_images=learner.images is not None, n_views=n_views, official=official)
        stored = None if live else store
        chosen = chosen_by_hand(
            method, live=stored is None, has_val=bool(source.splits.get("val")),
            crop_scale=crop_scale, flip=flip, official=official,
        )  # fmt: skip
        run = Run.planned(
            method,
            replace(protocol, fixed={**protocol.fixed, **chosen}),
            dataset=source.dataset,
            model=str(encoder.identity["name"]),
            fingerprint=store.fingerprint if store else str(encoder.identity["weights"]),
            shots=drawn.shots,
            fewest=drawn.shots,
            n_views=0 if stored is None else max(1, n_views),
        )
        about = about_training(
            method, plan, encoder, source, names, drawn.paths, drawn.labels,
            seed=protocol.seed, store=stored, views=protocol.views,
            synthesized=None if halves is None else halves.fingerprint,
        )  # fmt: skip
        settings = settings_of(method, None if stored else plan, chosen)
        return cls(method, drawn, clip, learner, plan, halves, stored, run, about, settings)


def settings_of(
    method: EndToEnd, plan: TrainingPlan | None, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """All choices of a training: the method's fields, and the crops of a plan that makes some.

    Args:
        method: With its settings.
        plan: The plan; None where features come from a store.
        chosen: Choices about images, by `chosen_by_hand`.
    """
    crops = {"crop_scale": list(plan.crop_scale), "flip": plan.flip} if plan else {}
    return {**asdict(method), **crops, **chosen}

"""One combination of what a benchmark asks for: whether it can be, and the cell that it is."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cache.errors import UserError, unknown
from cache.pair import Pair
from cache.store import FeatureStore
from fewshot.abilities import SupportsNewClasses
from fewshot.bench.config import ALL, Bench
from fewshot.bench.trained import TrainOptions
from fewshot.domain_adaptation import relation, takes_target
from fewshot.endtoend.clip import EndToEnd
from fewshot.endtoend.crops import chosen_by_hand, crops_asked, learns_live
from fewshot.endtoend.requirements import require_few_shots, require_published
from fewshot.method import Method, MethodInfo
from fewshot.multi_label.label_fitting import of_several_labels, require_several
from fewshot.new_classes import require_named_alone
from fewshot.open_set import checked_known, known_classes
from fewshot.protocol import HALVES, Protocol
from fewshot.run import Run
from fewshot.settling import require_labels
from fewshot.synthesis.from_store import lacks_text


@dataclass(frozen=True, eq=False)
class Cell:
    """One result to be.

    Attributes:
        run: What it will be of.
        protocol: What is asked for it.
        tested: The store of the test split.
        learned: The store of the few shots; mostly the same.
        train: Options of a method that is trained through the model.
    """

    run: Run
    protocol: Protocol
    tested: FeatureStore
    learned: FeatureStore
    train: TrainOptions = field(default_factory=TrainOptions)


@dataclass(frozen=True, eq=False)
class Stores:
    """Where is learned and where is tested, and what the two have in common.

    Attributes:
        learned: The store of the few shots.
        tested: The store of the test split; mostly the same.
        shares: True if all classes to test are among those to learn.
        n_views: V of the store of the few shots.
        counted: What unequal classes were drawn for, and the images of their largest and smallest.
    """

    learned: FeatureStore
    tested: FeatureStore
    shares: bool
    n_views: int
    counted: dict[tuple[int | str, int], tuple[int, int]] = field(default_factory=dict)

    def counts(self, protocol: Protocol) -> tuple[int, int]:
        """Images of the largest class of the few shots and of the smallest."""
        shots = protocol.shots
        if protocol.imbalance is None and shots != "all":
            return shots, shots
        if (shots, protocol.seed) not in self.counted:
            train, names = self.learned.split("train"), self.learned.classnames
            if train.multi_label:  # then all
                counts = train.images_per_class(len(names))
                return int(counts.max()), int(counts.min())
            try:
                drawn = protocol.draw(train.labels, names)
            except UserError:  # what is wrong is for the cell to say when it runs
                return (0, 0) if shots == "all" else (shots, shots)
            counts = np.bincount(train.labels[drawn.train])
            self.counted[shots, protocol.seed] = drawn.shots, int(counts[counts > 0].min())
        return self.counted[shots, protocol.seed]


@dataclass(frozen=True, eq=False)
class Combination:
    """One combination of what the benchmark asks for."""

    bench: Bench
    method: MethodInfo
    protocol: Protocol
    stores: Stores

    def objection(self) -> tuple[str | None, bool]:
        """Say what makes it impossible, if anything, and whether it was asked for by name."""
        for objection, asked in (
            (self._method_cannot, self.bench.methods),
            (self._stores_cannot, self.bench.datasets),
        ):
            why = objection()
            if why:
                return why, asked != ALL
        return None, False

    def _method_cannot(self) -> str | None:
        name, setting = self.method.name, self.protocol.setting
        if isinstance(self.method, EndToEnd):
            model = self.stores.learned.model
            if isinstance(self.stores.learned, Pair):
                return f"{name} is trained through one model, and {model} is a pair"
            if setting in HALVES:
                return f"bench trains {name} on all classes; use fewshot train --base-to-new"
            try:
                require_few_shots(self.method, self.protocol)
                if self.bench.train.official:
                    crops = crops_asked(self.bench.train.crop_scale, self.bench.train.flip)
                    require_published(self.method, changed=[*self.protocol.fixed, *crops])
            except UserError as error:
                return str(error)
        if setting == "multi-label" and isinstance(self.method, Method):
            try:
                require_several(self.method)
            except UserError as error:
                return str(error)
        if self.protocol.synthesize is not None:
            try:
                require_labels(self.method, self.protocol.synthesize)
            except UserError as error:
                return str(error)
        elif setting in (*HALVES, "cross-dataset") and not isinstance(
            self.method, SupportsNewClasses
        ):
            return f"{name} knows no classes but those it has images of, so it is not for {setting}"
        labeled = self.method.needs_support(1) and self.protocol.shots
        if self.protocol.imbalance is not None and not labeled:
            return f"{name} learns from no labels, which imbalance is about"
        if self.protocol.shots == "all" and labeled and isinstance(self.method, Method):
            try:
                require_named_alone(self.stores.learned, self.method)
            except UserError as error:
                return str(error)
        return None

    def _stores_cannot(self) -> str | None:
        learned, tested, setting = self.stores.learned, self.stores.tested, self.protocol.setting
        prompts = self.protocol.prompt_set
        if learned.multi_label or setting == "multi-label":
            try:
                of_several_labels(learned, self.protocol)
            except UserError as error:
                return str(error)
        if setting in HALVES and learned.n_classes < 4:
            return f"{learned.dataset} has fewer than four classes, so it is not for {setting}"
        if self.protocol.known is not None:
            try:
                known_classes(learned.classnames, checked_known(self.protocol.known))
            except UserError as error:
                return f"{learned.dataset}: {error}"
        if setting == "domain-adaptation":
            try:
                relation(learned, tested)
            except UserError as error:
                return str(error)
        elif self.stores.shares == (setting == "cross-dataset"):
            has = "no classes but those of" if self.stores.shares else "classes that are not in"
            return f"{tested.dataset} has {has} {learned.dataset}, so it is not for {setting}"
        if prompts is not None and prompts not in tested.text_sets:
            return str(unknown(f"prompt set of {tested.path}", prompts, tested.text_sets))
        support = self.protocol.support_for(self.method)
        words = self.protocol.synthesize
        if support and words is not None and lacks_text(learned, words):
            return f"{learned.dataset} has no text, which {words} needs"
        if "train" not in learned.splits and not learned.text_sets:
            return f"{learned.dataset} has neither train images nor text to learn from"
        wanted = [(tested, "test")]
        if support or (self.method.unsupervised() and setting != "domain-adaptation"):
            wanted.append((learned, "train"))
        if setting == "domain-adaptation" and takes_target(self.method):
            wanted.append((tested, "train"))
        if support and self.protocol.tune_for(self.method, 2) in ("val", "full-val"):
            wanted.append((learned, "val"))
        for store, split in wanted:
            if split not in store.splits:
                return f"{store.dataset} has no {split} split"
        return None

    def cell(self) -> Cell:
        """The cell, whose tuning is the default where a class has too few images for `cv`."""
        learned, tested, protocol = self.stores.learned, self.stores.tested, self.protocol
        most = fewest = 0
        if protocol.support_for(self.method):
            most, fewest = self.stores.counts(protocol)
        if protocol.tune == "cv" and fewest < 2:
            protocol = replace(protocol, tune=None)
        n_views = max(1, self.stores.n_views)
        fixed = protocol.fixed
        if isinstance(self.method, EndToEnd):
            live = learns_live(
                on_images=self.method.on_images,
                n_views=self.stores.n_views,
                official=self.bench.train.official,
            )
            n_views = 0 if live else n_views
            fixed = {**fixed, **self._chosen_by_hand(self.method, live)}
        run = Run.planned(
            self.method,
            replace(protocol, fixed=fixed),
            dataset=tested.dataset,
            model=tested.model,
            fingerprint=tested.fingerprint,
            fitted_on=learned.dataset,
            shots=most,
            fewest=fewest,
            n_views=n_views,
        )
        return Cell(run, protocol, tested, learned, self.bench.train)

    def _chosen_by_hand(self, method: EndToEnd, live: bool) -> dict[str, Any]:
        train = self.bench.train
        return chosen_by_hand(
            method,
            live=live,
            has_val="val" in self.stores.learned.splits,
            crop_scale=train.crop_scale,
            flip=train.flip,
            official=train.official,
        )

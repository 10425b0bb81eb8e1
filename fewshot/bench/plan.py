"""A benchmark's cells, all known before the first one starts: so results show which are done."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import UserError, unknown
from cache.location import find_store, find_stores, pair_names, store_path
from cache.manifest import all_manifests
from cache.pair import Pair, found, paired
from cache.store import FeatureStore
from fewshot.bench.config import ALL, Bench
from fewshot.bench.trained import TrainOptions, require_trained
from fewshot.cross_dataset import shared_classes
from fewshot.domain_adaptation import relation, takes_target
from fewshot.endtoend.clip import EndToEnd
from fewshot.endtoend.crops import chosen_by_hand, crops_asked, learns_live
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.endtoend.methods import configure as configure_trained
from fewshot.endtoend.requirements import require_few_shots, require_published
from fewshot.method import Method, MethodInfo, SupportsNewClasses
from fewshot.methods import METHODS
from fewshot.multi_label.label_fitting import of_several_labels, require_several
from fewshot.open_set import checked_known, known_classes
from fewshot.protocol import HALVES, TRANSFERS, Protocol
from fewshot.run import Run
from fewshot.settings import configure, parse
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


@dataclass(frozen=True)
class BenchPlan:
    """The cells in the order of running, and what was left out and why.

    Every seed is gone through before the next, so that what a stopped benchmark leaves is
    comparable; within one, few shots come first, for they are cheap.
    """

    cells: list[Cell]
    left_out: list[str]

    def tasks(self, done: Collection[Run]) -> list[list[Cell]]:
        """The cells that are not done, those together that one fit serves."""
        tasks: dict[Run, list[Cell]] = {}
        for cell in self.cells:
            if cell.run not in done:
                fitted = cell.run
                if cell.protocol.setting in TRANSFERS:
                    fitted = replace(fitted, dataset="", fingerprint="")
                tasks.setdefault(fitted, []).append(cell)
        return list(tasks.values())


def plan(bench: Bench) -> BenchPlan:
    """The cells of a benchmark, none twice.

    What cannot be, such as new classes with a method that knows only those it has images of, is
    left out where `all` asked for it, and refused where it was asked for by name.

    Raises:
        UserError: Unknown names, settings that no method takes, no stores, or nothing to run.
    """
    for name in bench.methods:
        if name not in (*METHODS, *TRAINED, *ALL):
            raise unknown("method", name, [*METHODS, *TRAINED], see="fewshot methods")
    methods = list(METHODS) if bench.methods == ALL else list(bench.methods)
    require_trained(bench.train, methods, TRAINED)
    variants = {name: _variants(name, bench.settings, methods) for name in methods}
    left_out: dict[str, None] = {}
    pairs = list(_pairs(bench, left_out))
    cells: dict[Run, Cell] = {}
    for seed, shots, pair, name, prompts in product(
        bench.seeds, bench.shots, pairs, methods, bench.prompts or (None,)
    ):
        several = pair.learned.multi_label and bench.protocol == "few-shot"
        for settings in variants[name]:
            method = _configured(name, settings, pair.learned.logit_scale)
            if not shots and method.needs_support(shots):
                continue
            protocol = Protocol(
                shots=shots,
                seed=seed,
                tune=bench.tune,
                fixed=settings,
                prompt_set=prompts,
                imbalance=bench.imbalance,
                setting="multi-label" if several else bench.protocol,
                known=bench.known,
                score=bench.score,
                blend=bench.blend,
                synthesize=bench.synthesize,
            )
            ask = _Ask(bench, method, protocol, pair)
            objection, by_name = ask.objection()
            if objection and by_name:
                raise UserError(f"{objection}; name others, or all, which leaves such out")
            if objection:
                left_out[objection] = None
            else:
                cell = ask.cell()
                cells.setdefault(cell.run, cell)
    if not cells:
        why = left_out or ["methods that learn from labels want shots of 1 or more"]
        raise UserError(f"nothing to run: {'; '.join(why)}")
    return BenchPlan(list(cells.values()), list(left_out))


@dataclass(frozen=True, eq=False)
class _Pair:
    """Where is learned and where is tested, and what the two have in common.

    Attributes:
        learned: The store of the few shots.
        tested: The store of the test split; mostly the same.
        shares: Whether all classes to test are among those to learn.
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
            fewest = np.bincount(train.labels[drawn.train], minlength=len(names)).min()
            self.counted[shots, protocol.seed] = drawn.shots, int(fewest)
        return self.counted[shots, protocol.seed]


@dataclass(frozen=True, eq=False)
class _Ask:
    """One combination of what the benchmark asks for."""

    bench: Bench
    method: MethodInfo
    protocol: Protocol
    pair: _Pair

    def objection(self) -> tuple[str | None, bool]:
        """What makes it impossible, if anything, and whether it was asked for by name."""
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
            if isinstance(self.pair.learned, Pair):
                return (
                    f"{name} is trained through one model, and {self.pair.learned.model} is a pair"
                )
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
        return None

    def _stores_cannot(self) -> str | None:
        learned, tested, setting = self.pair.learned, self.pair.tested, self.protocol.setting
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
        elif self.pair.shares == (setting == "cross-dataset"):
            has = "no classes but those of" if self.pair.shares else "classes that are not in"
            return f"{tested.dataset} has {has} {learned.dataset}, so it is not for {setting}"
        if prompts is not None and prompts not in tested.text_sets:
            return str(unknown(f"prompt set of {tested.path}", prompts, tested.text_sets))
        support = self.protocol.support_for(self.method)
        words = self.protocol.synthesize
        if support and words is not None and lacks_text(learned, words):
            return f"{learned.dataset} has no text, which {words} needs"
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
        learned, tested, protocol = self.pair.learned, self.pair.tested, self.protocol
        most = fewest = 0
        if protocol.support_for(self.method):
            most, fewest = self.pair.counts(protocol)
        if protocol.tune == "cv" and fewest < 2:
            protocol = replace(protocol, tune=None)
        n_views = 1 if learned.multi_label else max(1, self.pair.n_views)
        fixed = protocol.fixed
        if isinstance(self.method, EndToEnd):
            live = learns_live(
                on_images=self.method.on_images,
                n_views=self.pair.n_views,
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
            has_val="val" in self.pair.learned.splits,
            crop_scale=train.crop_scale,
            flip=train.flip,
            official=train.official,
        )


def _variants(
    name: str, settings: Mapping[str, Sequence[str]], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Every combination of the settings that concern the method, each tried on it.

    Raises:
        UserError: A setting that concerns none of the methods, or a value that will not do.
    """
    every: dict[str, type[MethodInfo]] = {**METHODS, **TRAINED}
    known = {one: {f.name for f in fields(every[one])} for one in methods}
    mine: dict[str, Sequence[str]] = {}
    for key, values in sorted(settings.items(), key=lambda item: "." in item[0]):
        scope, dot, setting = key.rpartition(".")
        if dot and scope not in methods:
            raise unknown(f"method of the setting {key}", scope, methods)
        if dot and setting not in known[scope]:
            raise unknown(f"setting of {scope}", setting, known[scope])
        if not any(setting in names for names in known.values()):
            raise unknown("setting", setting, set().union(*known.values()))
        if setting in known[name] and scope in ("", name):
            mine[setting] = values
    variants = [
        parse(every[name], dict(zip(mine, values, strict=True)), name)
        for values in product(*mine.values())
    ]
    for variant in variants:
        _configured(name, variant, None)
    return variants


def _configured(name: str, settings: Mapping[str, Any], logit_scale: float | None) -> MethodInfo:
    if name in TRAINED:
        return configure_trained(name, settings, seed=1)
    return configure(name, settings, logit_scale=logit_scale)


def _pairs(bench: Bench, left_out: dict[str, None]) -> Iterator[_Pair]:
    stores = list(_stores(bench, left_out))
    for model in dict.fromkeys(store.model for store in stores):
        source = None
        if bench.source is not None:
            source, _ = found(bench.store, bench.source, model)
        for tested in stores:
            learned = source or tested
            if tested.model != model:
                continue
            if source is not None and tested.path == source.path:
                if bench.datasets != ALL:
                    raise UserError(f"{tested.dataset} is the source and so no target; drop it")
                continue
            shares = learned is tested or shared_classes(learned, tested) is not None
            n_views = learned.split("train").n_views if "train" in learned.splits else 0
            yield _Pair(learned, tested, shares, n_views)


def _stores(bench: Bench, left_out: dict[str, None]) -> Iterator[FeatureStore]:
    """The stores of the datasets and models, in the order of their names."""
    there = [bench.store] if bench.store.is_file() else find_stores(bench.store)
    folders = {path.parent.name for path in there}
    manifests = {name.lower() for m in all_manifests() for name in (m.name, *m.aliases)}
    chosen: set[tuple[Path, ...]] = set()
    for dataset, model in product(bench.datasets, bench.models):
        by_name = None if dataset in ALL else dataset
        if by_name and there and by_name.lower() not in manifests and by_name not in folders:
            raise unknown("dataset", by_name, folders)
        names = pair_names(model) or (model,)
        newest, _ = find_store(bench.store, by_name, None if model in ALL else names[-1])
        beside = [store_path(bench.store, "x", one).name for one in names[:-1]]
        chosen |= {
            (*map(path.with_name, beside), path)
            for path in there
            if (by_name is None or path.parent == newest.parent)
            and (model in ALL or path.name == newest.name)
        }
    for paths in sorted(chosen):
        try:
            stores = [FeatureStore.open(path) for path in paths]
            yield paired(*stores) if len(stores) == 2 else stores[0]
        except UserError as error:
            if bench.datasets != ALL:
                raise
            left_out[str(error)] = None

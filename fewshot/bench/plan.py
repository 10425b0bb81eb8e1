"""What a benchmark runs: every cell of it, known before the first one starts.

A cell is one result to be. It carries what `Result.cell` is going to say, so that a file of
results tells which cells are done already.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import UserError, unknown
from cache.identity import canonical_json
from cache.location import find_store, find_stores
from cache.manifest import all_manifests
from cache.store import FeatureStore
from fewshot.bench.config import ALL, TRANSFERS, Bench
from fewshot.endtoend.clip import EndToEnd
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.endtoend.methods import configure as configure_trained
from fewshot.evaluation import setting_name, shared_classes
from fewshot.fitting import protocol_used
from fewshot.method import MethodInfo, SupportsNewClasses
from fewshot.methods import METHODS
from fewshot.sampling import draw_imbalanced
from fewshot.settings import configure


def key_of(what: Mapping[str, Any]) -> str:
    """A text that is equal for equal cells, given as `Result.cell` gives them."""
    return canonical_json(what)


@dataclass(frozen=True, eq=False)
class Cell:
    """One result to be.

    Attributes:
        what: What was asked for, as `Result.cell` says it.
        protocol: One of the benchmark's protocols.
        settings: The method's fixed hyper-parameters, as text.
        shots: K as asked for, whatever the method makes of it.
        tested: The store of the test split.
        learned: The store of the few shots; mostly the same.
    """

    what: Mapping[str, Any]
    protocol: str
    settings: Mapping[str, str]
    shots: int
    tested: Path
    learned: Path

    @property
    def key(self) -> str:
        """Equal to that of the result's `Result.cell`."""
        return key_of(self.what)

    def __str__(self) -> str:
        shots, seed = self.what["shots"], self.what["seed"]
        words = [self.what["method"], *(f"{name}={v}" for name, v in self.settings.items())]
        words += [self.what["dataset"], self.what["model"]]
        words += [f"prompts {self.what['prompt_set']}"] if self.what["prompt_set"] else []
        words += [f"{shots} shot{'s' if shots > 1 else ''}, seed {seed}"] if shots else []
        return " ".join(words)


@dataclass(frozen=True)
class Plan:
    """The cells in the order of running, and what was left out and why.

    Every seed is gone through before the next, so that what a stopped benchmark leaves is
    comparable; within one, few shots come first, for they are cheap.
    """

    cells: list[Cell]
    left_out: list[str]

    def tasks(self, done: Mapping[str, object]) -> list[list[Cell]]:
        """The cells that are not done, those together that one fit serves."""
        tasks: dict[str, list[Cell]] = {}
        for cell in self.cells:
            if cell.key not in done:
                tested = ("dataset", "fingerprint") if cell.protocol in TRANSFERS else ()
                fitted = {name: value for name, value in cell.what.items() if name not in tested}
                tasks.setdefault(canonical_json(fitted), []).append(cell)
        return list(tasks.values())


def plan(bench: Bench) -> Plan:
    """The cells of a benchmark, none twice.

    What cannot be, such as new classes with a method that knows only those it has images of, is
    left out where `all` asked for it, and refused where it was asked for by name.

    Raises:
        UserError: Unknown names, settings that no method takes, no stores, or nothing to run.
    """
    for name in bench.methods:
        if name not in (*METHODS, *TRAINED, *ALL):
            raise unknown("method", name, [*METHODS, *TRAINED])
    methods = list(METHODS) if bench.methods == ALL else list(bench.methods)
    variants = {name: _variants(name, bench.settings, methods) for name in methods}
    left_out: dict[str, None] = {}
    pairs = list(_pairs(bench, left_out))
    cells: dict[str, Cell] = {}
    for seed, shots, pair, name, prompts in product(
        bench.seeds, bench.shots, pairs, methods, bench.prompts or (None,)
    ):
        for settings in variants[name]:
            method = _configured(name, settings, pair.learned.logit_scale)
            ask = _Ask(bench, method, settings, pair, prompts, shots, seed)
            if not shots and method.needs_support(shots):
                continue
            objection, by_name = ask.objection()
            if objection and by_name:
                raise UserError(f"{objection}; name others, or all, which leaves such out")
            if objection:
                left_out[objection] = None
            else:
                cell = ask.cell()
                cells.setdefault(cell.key, cell)
    if not cells:
        why = left_out or ["methods that learn from labels want shots of 1 or more"]
        raise UserError(f"nothing to run: {'; '.join(why)}")
    return Plan(list(cells.values()), list(left_out))


@dataclass(frozen=True, eq=False)
class _Pair:
    """Where is learned and where is tested, and what the two have in common.

    Attributes:
        learned: The store of the few shots.
        tested: The store of the test split; mostly the same.
        shares: Whether all classes to test are among those to learn.
        n_views: V of the support sets.
        counted: What unequal classes were drawn for, and the images of their largest and smallest.
    """

    learned: FeatureStore
    tested: FeatureStore
    shares: bool
    n_views: int
    counted: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def counts(self, imbalance: str | None, shots: int, seed: int) -> tuple[int, int]:
        """Images of the largest class and of the smallest."""
        if imbalance is None:
            return shots, shots
        if (shots, seed) not in self.counted:
            labels, names = self.learned.labels("train"), self.learned.classnames
            try:
                drawn = draw_imbalanced(labels, names, profile=imbalance, shots=shots, seed=seed)
            except UserError:  # what is wrong is for the cell to say when it runs
                return shots, shots
            least = np.bincount(labels[drawn.train], minlength=len(names)).min()
            self.counted[shots, seed] = drawn.shots, int(least)
        return self.counted[shots, seed]


@dataclass(frozen=True, eq=False)
class _Ask:
    """One combination of what the benchmark asks for."""

    bench: Bench
    method: MethodInfo
    settings: Mapping[str, str]
    pair: _Pair
    prompts: str | None
    shots: int
    seed: int

    @property
    def labeled(self) -> bool:
        return self.method.needs_support(self.shots)

    def objection(self) -> tuple[str | None, bool]:
        """What makes it impossible, if anything, and whether it was asked for by name."""
        for objection, asked in (
            (self._method_cannot(), self.bench.methods),
            (self._stores_cannot(), self.bench.datasets),
        ):
            if objection:
                return objection, asked != ALL
        return None, False

    def _method_cannot(self) -> str | None:
        name, protocol = self.method.name, self.bench.protocol
        if isinstance(self.method, EndToEnd) and (
            protocol != "few-shot" or self.bench.imbalance or self.prompts
        ):
            return f"{name} is trained end to end, from few shots and with prompts of its own alone"
        if protocol in ("base-to-new", "cross-dataset") and not isinstance(
            self.method, SupportsNewClasses
        ):
            return (
                f"{name} knows no classes but those it has images of, so it is not for {protocol}"
            )
        if self.bench.imbalance and not self.labeled:
            return f"{name} learns from no labels, which imbalance is about"
        return None

    def _stores_cannot(self) -> str | None:
        learned, tested, protocol = self.pair.learned, self.pair.tested, self.bench.protocol
        if self.pair.shares == (protocol == "cross-dataset"):
            has = "no classes but those of" if self.pair.shares else "classes that are not in"
            return f"{tested.dataset} has {has} {learned.dataset}, so it is not for {protocol}"
        if self.prompts is not None and self.prompts not in tested.text_sets:
            return str(unknown(f"prompt set of {tested.path}", self.prompts, tested.text_sets))
        wanted = [(tested, "test")]
        if self.labeled or self.method.unsupervised():
            wanted.append((learned, "train"))
        if self._tune(2) in ("val", "full-val"):
            wanted.append((learned, "val"))
        for store, split in wanted:
            if split not in store.splits:
                return f"{store.dataset} has no {split} split"
        return None

    def _tune(self, least: int) -> str:
        """The tuning protocol; one image of a class cannot be cross-validated, as by default."""
        if not self.labeled:
            return "none"
        tune = None if self.bench.tune == "cv" and least < 2 else self.bench.tune
        return protocol_used(self.method, tune, self.settings, least)

    def cell(self) -> Cell:
        bench, learned, tested = self.bench, self.pair.learned, self.pair.tested
        most, least, seed, n_views = 0, 0, 0, 0
        if self.labeled:
            most, least = self.pair.counts(bench.imbalance, self.shots, self.seed)
            seed, n_views = self.seed, self.pair.n_views
            if isinstance(self.method, EndToEnd) and self.method.on_images:
                n_views = 0  # but live images
        protocol = "imbalanced" if bench.imbalance else bench.protocol
        what = {
            "method": self.method.name,
            "fixed": {name: getattr(self.method, name) for name in self.settings},
            "dataset": tested.dataset,
            "model": tested.model,
            "setting": setting_name(
                self.method, None if protocol == "few-shot" else protocol, self.labeled
            ),
            "fitted_on": learned.dataset,
            "shots": most,
            "seed": seed,
            "tune": self._tune(least),
            "imbalance": bench.imbalance,
            "prompt_set": self.prompts,
            "n_views": n_views,
            "fingerprint": tested.fingerprint,
        }
        return Cell(what, bench.protocol, self.settings, self.shots, tested.path, learned.path)


def _variants(
    name: str, settings: Mapping[str, Sequence[str]], methods: Sequence[str]
) -> list[dict[str, str]]:
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
    variants = [dict(zip(mine, values, strict=True)) for values in product(*mine.values())]
    for variant in variants:
        _configured(name, variant, None)
    return variants


def _configured(name: str, settings: Mapping[str, str], logit_scale: float | None) -> MethodInfo:
    if name in TRAINED:
        return configure_trained(name, settings, seed=1)
    return configure(name, settings, logit_scale=logit_scale)


def _pairs(bench: Bench, left_out: dict[str, None]) -> Iterator[_Pair]:
    stores = list(_stores(bench, left_out))
    for model in dict.fromkeys(store.model for store in stores):
        source = None
        if bench.source is not None:
            source = FeatureStore.open(find_store(bench.store, bench.source, model)[0])
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
            yield _Pair(learned, tested, shares, max(1, n_views))


def _stores(bench: Bench, left_out: dict[str, None]) -> Iterator[FeatureStore]:
    """The stores of the datasets and models, in the order of their names."""
    there = [bench.store] if bench.store.is_file() else find_stores(bench.store)
    folders = {path.parent.name for path in there}
    manifests = {name.lower() for m in all_manifests() for name in (m.name, *m.aliases)}
    chosen: set[Path] = set()
    for dataset, model in product(bench.datasets, bench.models):
        by_name = None if dataset in ALL else dataset
        if by_name and there and by_name.lower() not in manifests and by_name not in folders:
            raise unknown("dataset", by_name, folders)
        found, _ = find_store(bench.store, by_name, None if model in ALL else model)
        chosen |= {
            path
            for path in there
            if (by_name is None or path.parent == found.parent)
            and (model in ALL or path.name == found.name)
        }
    for path in sorted(chosen):
        try:
            yield FeatureStore.open(path)
        except UserError as error:
            if bench.datasets != ALL:
                raise
            left_out[str(error)] = None

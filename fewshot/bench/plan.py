"""A benchmark's cells, all known before the first one starts: so results show which are done."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from cache.datasets.manifest import all_manifests
from cache.errors import UserError, unknown
from cache.location import find_store, find_stores, pair_names, store_path
from cache.pair import found, paired
from cache.store import FeatureStore
from fewshot.bench.combination import Cell, Combination, Stores
from fewshot.bench.config import ALL, Bench
from fewshot.bench.trained import require_trained
from fewshot.cross_dataset import shared_classes
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.endtoend.methods import configure as configure_trained
from fewshot.method import MethodInfo
from fewshot.methods import METHODS
from fewshot.protocol import TRANSFERS
from fewshot.run import Run
from fewshot.settings import configure, parse


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
    every = list(_stores(bench, left_out))
    cells: dict[Run, Cell] = {}
    for seed, shots, stores, name, prompts in product(
        bench.seeds, bench.shots, every, methods, bench.prompts or (None,)
    ):
        several = stores.learned.multi_label and bench.protocol == "few-shot"
        for settings in variants[name]:
            method = _configured(name, settings, stores.learned.logit_scale)
            if not shots and method.needs_support(shots):
                continue
            protocol = replace(bench.asked(shots, seed), fixed=settings, prompt_set=prompts)
            if several:
                protocol = replace(protocol, setting="multi-label")
            ask = Combination(bench, method, protocol, stores)
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


def _stores(bench: Bench, left_out: dict[str, None]) -> Iterator[Stores]:
    stores = list(_tested(bench, left_out))
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
            yield Stores(learned, tested, shares, n_views)


def _tested(bench: Bench, left_out: dict[str, None]) -> Iterator[FeatureStore]:
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

"""One fit of a benchmark, and what comes of it: results, or failures that stop nobody else."""

import functools
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.encoder import Encoder
from cache.errors import UserError
from cache.loading import load
from cache.source import Source, find
from cache.store import FeatureStore
from fewshot.bench.plan import Cell, key_of
from fewshot.endtoend.experiment import run
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.endtoend.methods import configure as configure_trained
from fewshot.evaluation import base_to_new, evaluate, transfer
from fewshot.results.log import Result
from fewshot.settings import configure


@dataclass(frozen=True)
class Failure:
    """What became of a cell that gave no result.

    Attributes:
        error: One line.
        trace: Where it happened, if that was no mistake of the user's.
    """

    error: str
    trace: str = ""


def attempt(save: Path | None, cells: Sequence[Cell]) -> tuple[Sequence[Result | Failure], float]:
    """What comes of the cells, and the seconds it took.

    Args:
        save: A folder to write predictions into.
        cells: Cells that one fit serves: all alike but in what they test.
    """
    start = time.monotonic()
    return _outcomes(save, cells), time.monotonic() - start


def _outcomes(save: Path | None, cells: Sequence[Cell]) -> Sequence[Result | Failure]:
    """What comes of the cells; where one fit of them all fails, of each by itself."""
    try:
        results = _evaluate(save, cells)
        for cell, result in zip(cells, results, strict=True):
            if key_of(result.cell()) != cell.key:
                raise UserError(f"{cell.tested} was replaced while the benchmark ran; run it again")
    except Exception as error:  # whatever it is, the other cells shall run
        if len(cells) > 1:
            return [outcome for cell in cells for outcome in _outcomes(save, [cell])]
        if isinstance(error, UserError):
            return [Failure(" ".join(str(error).split()))]
        line = traceback.format_exception_only(error)[-1]
        return [Failure(" ".join(line.split()), traceback.format_exc())]
    return results


def _evaluate(save: Path | None, cells: Sequence[Cell]) -> list[Result]:
    cell = cells[0]
    store = FeatureStore.open(cell.learned)
    if cell.what["method"] in TRAINED:
        return [_train(save, cell, store)]
    method = configure(cell.what["method"], cell.settings, logit_scale=store.logit_scale)
    imbalance = cell.what["imbalance"]
    ask: dict[str, Any] = {
        "shots": cell.shots,
        "seed": cell.what["seed"],
        "tune": cell.what["tune"],
        "fixed": cell.settings,
        "prompt_set": cell.what["prompt_set"],
        "save": save,
    }
    if cell.tested != cell.learned:
        targets = [FeatureStore.open(one.tested) for one in cells]
        return transfer(store, targets, method, **ask)
    if cell.protocol == "base-to-new":
        return [base_to_new(store, method, **ask)]
    return [evaluate(store, method, imbalance=imbalance, **ask)]


def _train(save: Path | None, cell: Cell, store: FeatureStore) -> Result:
    """The result of a method that needs the model, and mostly the images, beside the store."""
    seed = cell.what["seed"]
    method = configure_trained(cell.what["method"], cell.settings, seed=seed)
    trained = run(
        method,
        _encoder(store.model),
        _source(store.dataset),
        shots=cell.shots,
        seed=seed,
        store=store,
        fixed=cell.settings,
        save=save,
    )
    return trained.result


@functools.lru_cache(maxsize=1)
def _encoder(model: str) -> Encoder:
    """Loaded once for all cells of a model."""
    return load(model)


@functools.lru_cache(maxsize=8)
def _source(dataset: str) -> Source:
    return find(dataset, None)

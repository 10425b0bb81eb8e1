"""One fit of a benchmark, and what comes of it: results, or failures that stop nobody else."""

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cache.datasets.layouts.shard_names import is_pattern
from cache.datasets.resolving import find
from cache.datasets.source import Source
from cache.errors import UserError
from cache.extraction.bank import Bank
from cache.location import bank_path
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.progress import silent_within
from cache.store import FeatureStore
from fewshot.bench.combination import Cell
from fewshot.cross_dataset import transfer
from fewshot.domain_adaptation import adapt
from fewshot.endtoend.experiment import run
from fewshot.endtoend.finished import named_checkpoint
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.endtoend.methods import configure as configure_trained
from fewshot.evaluation import evaluate
from fewshot.protocol import TRANSFERS
from fewshot.results.log import Result
from fewshot.run import Run


@dataclass(frozen=True)
class Failure:
    """The error of a cell that gave no result.

    Attributes:
        error: One line.
        trace: Where it happened, if that was no mistake of the user's.
    """

    error: str
    trace: str = ""


@dataclass(frozen=True)
class Attempt:
    """How cells are run.

    Attributes:
        out: The folder of results, which keeps the checkpoint of a training for as long as that has
            no result.
        predictions: Save predictions there.
        note: Called with how far a training is.
    """

    out: Path
    predictions: bool
    note: Callable[[str], None] | None = None

    def __call__(self, cells: Sequence[Cell]) -> tuple[Sequence[Result | Failure], float]:
        """Run the cells; return their outcomes and the elapsed seconds.

        Args:
            cells: Cells that one fit serves: all alike but in what they test.
        """
        start = time.monotonic()
        with silent_within():  # the benchmark shows its cells
            return _outcomes(self, cells), time.monotonic() - start

    @property
    def save(self) -> Path | None:
        """The folder of predictions, if they are saved."""
        return self.out / "predictions" if self.predictions else None


def checkpoint_of(out: Path, cell: Cell) -> Path:
    """The checkpoint of a cell that is trained through the model."""
    run, options = cell.run, cell.train
    name = f"{run.method}-{run.dataset}-{run.shots}-{run.seed}"
    return named_checkpoint(out, name, asdict(run), options.device, options.precision)


def _outcomes(how: Attempt, cells: Sequence[Cell]) -> Sequence[Result | Failure]:
    """The outcomes of the cells; where one fit of them all fails, of each by itself."""
    try:
        results = _evaluate(how, cells)
        for cell, result in zip(cells, results, strict=True):
            _require_planned(cell, result.run)
    except Exception as error:  # whatever it is, the other cells shall run
        if len(cells) > 1:
            return [outcome for cell in cells for outcome in _outcomes(how, [cell])]
        if isinstance(error, UserError):
            return [Failure(" ".join(str(error).split()))]
        line = traceback.format_exception_only(error)[-1]
        return [Failure(" ".join(line.split()), traceback.format_exc())]
    return results


def _require_planned(cell: Cell, run: Run) -> None:
    """Raise unless the run is the one that was planned.

    Raises:
        UserError: The store has changed since.
        RuntimeError: The plan was wrong.
    """
    if run.fingerprint != cell.run.fingerprint:
        raise UserError(f"{cell.tested.path} was replaced while the benchmark ran; run it again")
    pairs = {f.name: (getattr(run, f.name), getattr(cell.run, f.name)) for f in fields(Run)}
    differing = [
        f"{k} is {is_!r}, planned {was!r}" for k, (is_, was) in pairs.items() if is_ != was
    ]
    if differing:
        raise RuntimeError(
            f"the result is of another run than planned ({'; '.join(differing)}), a bug of "
            "this program; please report it"
        )


def _evaluate(how: Attempt, cells: Sequence[Cell]) -> list[Result]:
    cell, save = cells[0], how.save
    store = cell.learned.reopened()
    method = cell.run.method
    if method in TRAINED:
        return [_train(how, cell, store)]
    if cell.protocol.setting == "domain-adaptation":
        targets = [one.tested.reopened() for one in cells]
        return [adapt(store, target, method, cell.protocol, save=save) for target in targets]
    if cell.protocol.setting in TRANSFERS:
        targets = [one.tested.reopened() for one in cells]
        return transfer(store, targets, method, cell.protocol, save=save)
    if cell.protocol.setting == "multi-label":
        save = None  # predictions for `compare` are one class of each image
    return [evaluate(store, method, cell.protocol, save=save)]


def _train(how: Attempt, cell: Cell, store: FeatureStore) -> Result:
    """The result of a method that needs the model, and mostly the images, beside the store."""
    method = configure_trained(cell.run.method, cell.protocol.fixed, seed=cell.protocol.seed)
    options = cell.train
    name = store.dataset if options.data_root else _place(store) or store.dataset
    source = _source(name, options.data_root, options.max_pixels)
    n_train = len(source.splits.get("train", ()))
    steps = method.steps(int(cell.protocol.shots), len(source.classnames), n_train)

    def watch(step: int, loss: float, accuracy: float, rate: float) -> None:
        if how.note is not None:
            how.note(f"{method.step_name} {step} of {steps}")

    return run(
        method,
        _encoder(store.model, options.device, options.precision),
        source,
        cell.protocol,
        store=store,
        crop_scale=options.crop_scale,
        flip=options.flip,
        official=options.official,
        save_memory=options.save_memory,
        checkpoint=checkpoint_of(how.out, cell),
        watch=watch,
        save=how.save,
    ).result


@functools.lru_cache(maxsize=1)
def _encoder(model: str, device: str, precision: str) -> Encoder:
    """Loaded once for all cells of a model."""
    return load(model, device=device, precision=precision)


def _place(store: FeatureStore) -> str | None:
    """The folder, table or shards of a store's images, if they were the user's own and are there.

    So a benchmark finds them from any directory.
    """
    bank, place = bank_path(store.path.parents[1]), None
    if bank.is_file():
        with contextlib.suppress(UserError), Bank.opened(bank) as kept:
            place = kept.place(store.path)
    return place if place and (is_pattern(place) or Path(place).exists()) else None


@functools.lru_cache(maxsize=8)
def _source(dataset: str, data_root: Path | None, max_pixels: int) -> Source:
    return find(dataset, None, root=data_root, max_pixels=max_pixels)

"""Images of which a store has the features: classified without files and without a model."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from cache.errors import UserError, count
from cache.pair import Pair, paired
from cache.progress import progress
from cache.split import Split
from cache.store import FeatureStore
from fewshot.adapters import output, prediction_parts
from fewshot.adapters.adapter import Adapter, load_adapter
from fewshot.adapters.answers import Answers
from fewshot.adapters.hub import adapter_file
from fewshot.adapters.image_results import (
    Prediction,
    PredictionCounts,
    PredictionForm,
    Unreadable,
)
from fewshot.adapters.opened_adapter import method_of, without_model
from fewshot.adapters.predict import counted, print_lines
from fewshot.adapters.same_model import require_model

BLOCK = 4096  # images in memory at a time: 8 MiB of 512 features


class StoredImages:
    """The images of a store that have features, in the order train, val, test, and an adapter.

    Args:
        adapter: What classifies them.
        store: Where the features are; of an adapter of two models, a pair.
        split: One split alone.
        asked: The form of the predictions.

    Raises:
        UserError: The adapter is of another model or preprocessing, was trained end to end, or
            lacks what is asked for; or there is no such split, or no image in it.
    """

    def __init__(
        self,
        adapter: Adapter,
        store: FeatureStore,
        split: str | None = None,
        asked: PredictionForm = PredictionForm(),  # noqa: B008, it is frozen
    ) -> None:
        predictor = without_model(adapter, store.image_tower)
        _require_same_features(adapter, store)
        self._classify = Answers(predictor, asked)
        self._unit = method_of(adapter).unit_norm
        self._pooled = predictor.tower is not None
        self.jointly = predictor.jointly
        self._splits = [store.split(name) for name in ([split] if split else store.splits)]
        if not len(self):
            raise UserError(f"{store.path} has no features of images there; name another split")

    def __len__(self) -> int:
        """M, the number of images that have features."""
        return sum(len(split.encoded) for split in self._splits)

    def predictions(self, start: int = 0, stop: int | None = None) -> Iterator[Prediction]:
        """Yield the predictions of images number start to stop - 1.

        Raises:
            UserError: The store is damaged, or the numbers are not finite.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        block = len(self) if self.jointly else BLOCK
        for begin in range(start, stop, block):
            paths: list[str] = []
            features = []
            for split, rows in self._rows(begin, min(begin + block, stop)):
                paths += [split.paths[row] for row in rows]
                pooled = self._pooled
                features.append(
                    split.pooled(rows) if pooled else split.features(rows, unit=self._unit)
                )
            yield from self._classify(paths, torch.from_numpy(np.concatenate(features)))

    def _rows(self, start: int, stop: int) -> Iterator[tuple[Split, list[int]]]:
        """The rows of each split that images number start to stop - 1 are in."""
        first = 0
        for split in self._splits:
            rows = split.encoded[max(start - first, 0) : max(stop - first, 0)]
            if len(rows):
                yield split, rows.tolist()
            first += len(split.encoded)


def classify_stored(
    adapter: Path,
    stores: Sequence[Path],
    asked: PredictionForm,
    *,
    out: TextIO,
    say: Callable[[str], None],
    split: str | None = None,
    to: Path | None = None,
    shard: tuple[int, int] | None = None,
    form: str = "table",
) -> PredictionCounts:
    """Classify the images of a store and write what is found.

    Args:
        adapter: Its file.
        stores: The store's file; for an adapter of two models those of both, in any order.
        asked: The form of the predictions.
        out: Where predictions are written, line by line, unless `to` is given.
        say: Called with notes.
        split: One split alone.
        to: A file, written whole or not at all; or a folder of parts, of which a run that stopped
            writes the rest.
        shard: (i, n): only the i-th of n shares of a folder's parts.
        form: One of `output.FORMATS`, or of `prediction_parts.FORMS` for a folder.

    Raises:
        UserError: As `StoredImages` and `opened`, or `to` cannot be what it is to be.
    """
    in_parts = to is not None and not to.suffix
    if shard and not in_parts:
        raise UserError("--shard divides the parts of a folder; give --out FOLDER as well")
    if to is None:
        output.require_format(form)
    else:
        form = prediction_parts.require_form(to, form)
    learned = load_adapter(adapter)
    store = opened(learned, stores)
    images = StoredImages(learned, store, split, asked)
    if in_parts and images.jointly:
        raise UserError(
            f"{learned.method} classifies all images jointly, so not in parts; give --out FILE"
        )
    counts: Counter[str] = Counter()

    def predictions(start: int = 0, stop: int = len(images)) -> Iterator[Prediction | Unreadable]:
        return counted(images.predictions(start, stop), counts, say)

    there = 0
    if to is None:
        print_lines(predictions(), form, out)
    elif in_parts:
        of = {
            "adapter": sha256(adapter_file(adapter).read_bytes()).hexdigest(),
            "store": store.fingerprint,
            "split": split,
            **asdict(asked),
        }
        with progress("images", len(images)) as advance:
            there = prediction_parts.write_parts(
                predictions, len(images), to, form, of, shard=shard or (1, 1), advance=advance
            )
    else:
        prediction_parts.write_file(predictions(), to, form)
    return PredictionCounts(counts["classified"], counts["unknown"], 0, there)


def opened(adapter: Adapter, files: Sequence[Path]) -> FeatureStore:
    """The store of the adapter's model; those of its two models as a pair, with its weight.

    Raises:
        UserError: One too many or too few is given, or two are of different images.
    """
    stores = [FeatureStore.open(file) for file in files]
    need = 1 if adapter.beside is None else 2
    if len(stores) != need:
        raise UserError(
            f"this adapter is of {adapter.model_name}, so --store must be given "
            f"{'once' if need == 1 else 'twice, for the store of each model'}; got "
            f"{count(len(stores), 'store')}"
        )
    if adapter.beside is None:
        return stores[0]
    name = adapter.beside.model["name"]
    first, second = sorted(stores, key=lambda store: store.model != name)
    return paired(first, second).at(adapter.beside.weight)


def _require_same_features(adapter: Adapter, store: FeatureStore) -> None:
    """Raise unless a store's images went to features as the adapter's training images did."""
    beside = adapter.beside
    if (beside is not None) != isinstance(store, Pair):
        raise UserError(f"this adapter is of {adapter.model_name}, and {store.path} is not")
    if beside is not None and isinstance(store, Pair):
        _require_model_and_crops(beside.model, beside.preprocessing, store.beside)
        store = store.alone
    _require_model_and_crops(adapter.model, adapter.preprocessing, store)


def _require_model_and_crops(
    recorded: Mapping[str, Any], prepared: Mapping[str, Any], store: FeatureStore
) -> None:
    """Raise unless a store is of the model and the preprocessing that an adapter records."""
    require_model(recorded, {**store.identity["model"], "dim": store.dim})
    if not recorded.get("weights") and recorded["name"] != store.model:
        raise UserError(
            f"this adapter was made with {recorded['name']}, and {store.path} is of "
            f"{store.model}; name a store of the same model"
        )
    have = store.preprocessing
    differ = [key for key in prepared if key in have and have[key] != prepared[key]]
    if differ:
        said = ", ".join(
            f"{key} {have[key]} there, {prepared[key]} for the adapter" for key in differ
        )
        raise UserError(
            f"the images of {store.path} were prepared otherwise than the adapter's ({said}); "
            "extract them again, or fit again"
        )

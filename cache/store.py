"""The feature store: all that a frozen CLIP made of one dataset, in one HDF5 file.

    identity, versions                 JSON: what made the features, and with which libraries
    classnames, skipped                names by class id; the unreadable images left out
    <split>/labels, <split>/paths      (N,) every image of train, val or test, in published order
    <split>/features, <split>/norms    (N, D) float16, unit norm; (N,) float32, the norms before
    <split>/rows                       (n,) the images encoded, where not all N were
    <split>/views, view_norms          (V, m, D), (V, m): augmented views of the images in view_rows
    text/<prompt set>/                 embeddings (P, D) float32, unit norm; norms, labels, prompts
    text/<prompt set>/pooled           (P, W) float32, the same before the text tower's projection,
    text_projection                    (W, D) float32; neither where a tower does not end in one

Unit features in float16 are off by 6e-5 at most, and their norms by 5e-4: reading makes them
float32 of unit norm again. Every matrix lies in one piece and uncompressed, so that a few rows of
it can be read and nothing else.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.errors import UserError, unknown
from cache.hdf5 import gather, reading, stamp
from cache.identity import differences
from cache.recipes import class_text

FORMAT = "fewshot feature store"
SCHEMA = 1
SPLITS = ("train", "val", "test")


def canonical_json(value: Any) -> str:
    """JSON of which there is only one spelling: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(identity: Mapping[str, Any]) -> str:
    """64 hex digits that stand for all that changes a byte of the features."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


@dataclass(frozen=True)
class FeatureStore:
    """One store, open for reading; holds no file handle, so it pickles and forks.

    Attributes:
        path: The HDF5 file.
        identity: What made the features, as nested mappings: dataset, model, preprocessing, ...
        fingerprint: The identity's 64 hex digits.
        versions: The libraries that wrote the file; no part of the identity.
        imported: True where the features were computed elsewhere.
        classnames: C names by class id; names may repeat.
        skipped: Images left out because they could not be read.
        splits: Those of train, val and test that are present.
        text_sets: The prompt sets that were encoded, possibly none.
        dim: D, the width of features and text alike.
        stamp: Size and time of the file when it was opened; a file replaced since is refused.
    """

    path: Path
    identity: dict[str, Any] = field(repr=False)
    fingerprint: str
    versions: dict[str, str] = field(repr=False)
    imported: bool
    classnames: tuple[str, ...] = field(repr=False)
    skipped: tuple[str, ...] = field(repr=False)
    splits: tuple[str, ...]
    text_sets: tuple[str, ...]
    dim: int
    stamp: tuple[int, int] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The store at `path`, its header read and checked.

        Raises:
            UserError: Nothing there, no HDF5, another program's file, cut short, unfinished,
                damaged, or written by a newer version.
        """
        found = stamp(path)
        if not h5py.is_hdf5(path):
            raise UserError(f"{path} is not an HDF5 file, so no feature store; name another")
        with reading(path) as file:
            if file.attrs.get("format") != np.bytes_(FORMAT):
                raise UserError(f"{path} is an HDF5 file that fewshot did not write; name another")
            if file.attrs["schema"] > SCHEMA:
                raise UserError(
                    f"{path} has schema {file.attrs['schema']} and this version reads up to "
                    f"{SCHEMA}; install a newer fewshot, or extract again"
                )
            if not file.attrs.get("complete", False):
                raise UserError(f"{path} was never finished; delete it and extract again")
            identity = json.loads(file["identity"].asstr()[()])
            if np.bytes_(fingerprint(identity)) != file.attrs["fingerprint"]:
                raise KeyError("the identity is not the one that the fingerprint was made of")
            splits = tuple(split for split in SPLITS if split in file)
            return cls(
                path=path,
                identity=identity,
                fingerprint=fingerprint(identity),
                versions=json.loads(file["versions"].asstr()[()]),
                imported=bool(file.attrs["imported"]),
                classnames=tuple(file["classnames"].asstr()[:]),
                skipped=tuple(file["skipped"].asstr()[:]),
                splits=splits,
                text_sets=tuple(file.get("text", ())),
                dim=int(file[splits[0]]["features"].shape[1]),
                stamp=found,
            )

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return str(self.identity["dataset"]["name"])

    @property
    def model(self) -> str:
        """The model's canonical name, such as `ViT-B-16/openai`."""
        return str(self.identity["model"]["name"])

    @property
    def logit_scale(self) -> float:
        """CLIP's inverse temperature; 100 for the published models."""
        return float(self.identity["model"]["logit_scale"])

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self.classnames)

    def labels(self, split: str) -> NDArray[np.int64]:
        """(N,) class ids of every image of the split, those not encoded included."""
        with self._split(split) as group:
            return _whole(group["labels"], np.int64)

    def paths(self, split: str) -> list[str]:
        """N paths, relative to the dataset's root, POSIX."""
        with self._split(split) as group:
            return list(group["paths"].asstr()[:])

    def encoded(self, split: str) -> NDArray[np.int64]:
        """(n,) rows of the split that have features, ascending; all N but for few-shot stores."""
        with self._split(split) as group:
            return _encoded(group)

    def features(
        self, split: str, rows: ArrayLike | None = None, *, unit: bool = True
    ) -> NDArray[np.float32]:
        """(n, D) features of the given rows, in the order given, repeats included.

        Args:
            split: One of `splits`.
            rows: (n,) rows of the split; without it all N, which must all have been encoded.
            unit: Unit norm; else as the encoder gave them.

        Raises:
            UserError: No such split, or a row that was not encoded.
        """
        with self._split(split) as group:
            at = self._positions(split, rows, _encoded(group), len(group["labels"]))
            features = gather(self.path, group["features"], at)
            if not unit:
                features *= group["norms"][:][at, None]
            return features

    def norms(self, split: str, rows: ArrayLike | None = None) -> NDArray[np.float32]:
        """(n,) norms of the features as the encoder gave them; rows as in `features`."""
        with self._split(split) as group:
            at = self._positions(split, rows, _encoded(group), len(group["labels"]))
            return _whole(group["norms"], np.float32)[at]

    def n_views(self, split: str) -> int:
        """V, the augmented views stored for each of some images; 0 without any."""
        with self._split(split) as group:
            return len(group["views"]) if "views" in group else 0

    def views(self, split: str, rows: ArrayLike, *, unit: bool = True) -> NDArray[np.float32]:
        """(V, n, D) augmented views of the given rows, in the order given, repeats included.

        Raises:
            UserError: No views in this store, or none of one of the rows.
        """
        with self._split(split) as group:
            if "views" not in group:
                raise UserError(
                    f"{self.path} holds no augmented {split} views; run {self._remake} --views V"
                )
            present = _whole(group["view_rows"], np.int64)
            at = self._positions(split, rows, present, len(group["labels"]), "views of ")
            n_views, n_rows, dim = group["views"].shape
            flat = (np.arange(n_views)[:, None] * n_rows + at).ravel()
            views = gather(self.path, group["views"], flat).reshape(n_views, len(at), dim)
            if not unit:
                views *= group["view_norms"][:][:, at, None]
            return views

    def text(self, recipe: str = "unit-mean", prompt_set: str | None = None) -> NDArray[np.float32]:
        """(C, D) text features, one row per class.

        Args:
            recipe: `unit-mean` or `raw-mean`; see `recipes.class_text`.
            prompt_set: One of `text_sets`. Without it `templates`, else the only set; and for
                `raw-mean` first `templates-raw`, the prompts that spell class names as they are,
                underscores and all, which a store has where that makes a difference.

        Raises:
            UserError: No such recipe or set, no text at all, or several sets and none named.
        """
        name = self._prompt_set(recipe, prompt_set)
        with self._open() as file:
            group = file["text"][name]
            return class_text(recipe, *(group[k][:] for k in ("embeddings", "norms", "labels")))

    def prompts(
        self, recipe: str = "unit-mean", prompt_set: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(P, D) unit-norm embeddings of the prompts that `text` averages, and (P,) class ids."""
        with self._open() as file:
            group = file["text"][self._prompt_set(recipe, prompt_set)]
            embeddings = _whole(group["embeddings"], np.float32)
            return embeddings, _whole(group["labels"], np.int64)

    def sentences(self, recipe: str = "unit-mean", prompt_set: str | None = None) -> list[str]:
        """P prompts as they were written, in the order of `prompts`."""
        with self._open() as file:
            return list(file["text"][self._prompt_set(recipe, prompt_set)]["prompts"].asstr()[:])

    def text_tower(
        self, prompt_set: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """What the `raw-mean` text was just before the text tower's last layer, and that layer.

        Args:
            prompt_set: As in `text` with the recipe `raw-mean`.

        Returns:
            (C, W) class means and the (W, D) projection, their product being that text; None
            where the store has no such thing: imported, of a model whose text tower ends otherwise,
            or extracted before stores held it.

        Raises:
            UserError: No such set, no text at all, or several sets and none named.
        """
        name = self._prompt_set("raw-mean", prompt_set)
        with self._open() as file:
            group = file["text"][name]
            if "pooled" not in group or "text_projection" not in file:
                return None
            pooled, labels = group["pooled"][:], group["labels"][:]
            means = class_text("raw-mean", pooled, np.ones(len(labels), np.float32), labels)
            return means, _whole(file["text_projection"], np.float32)

    def require(self, identity: Mapping[str, Any]) -> None:
        """Do nothing if the store was made just so.

        Raises:
            UserError: It was not; names every dotted key that differs, with both values.
        """
        differing = differences(self.identity, json.loads(canonical_json(identity)))
        if differing:
            raise UserError(
                f"{self.path} was made otherwise: {'; '.join(differing)}; "
                "replace it with --if-exists overwrite, or give another --store"
            )

    def _prompt_set(self, recipe: str, name: str | None) -> str:
        if not self.text_sets:
            raise UserError(
                f"{self.path} holds no text features; use a method that needs none, "
                "or import it again with text_features"
            )
        if name is None:
            usual = ("templates-raw", "templates") if recipe == "raw-mean" else ("templates",)
            name = next((known for known in usual if known in self.text_sets), None)
        if name is None and len(self.text_sets) > 1:
            raise UserError(
                f"{self.path} has several prompt sets; name one: {', '.join(self.text_sets)}"
            )
        name = name or self.text_sets[0]
        if name not in self.text_sets:
            raise unknown("prompt set", name, self.text_sets)
        return name

    def _positions(
        self,
        split: str,
        rows: ArrayLike | None,
        present: NDArray[np.int64],
        n_rows: int,
        what: str = "",
    ) -> NDArray[np.int64]:
        """Where the rows of a split lie in a matrix that holds only the rows `present`."""
        wanted = np.arange(n_rows) if rows is None else np.asarray(rows)
        if wanted.size == 0:
            return np.empty(0, np.int64)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise TypeError(f"rows must be (n,) integers; got {wanted.dtype} {wanted.shape}")
        if wanted.min() < 0 or wanted.max() >= n_rows:
            raise IndexError(f"rows must be in 0..{n_rows - 1}; got {wanted.min()}..{wanted.max()}")
        at = np.minimum(np.searchsorted(present, wanted), len(present) - 1)
        missing = wanted[present[at] != wanted]
        if missing.size:
            only = self.identity.get("support_only") or {}
            kept = ", ".join(f"{key} {value}" for key, value in only.items()) or "given rows"
            raise UserError(
                f"{self.path} holds {what}{len(present)} of {n_rows} {split} images ({kept}), "
                f"not row {missing[0]}; to encode more run {self._remake}"
            )
        return at

    @property
    def _remake(self) -> str:
        model = f"--dataset {self.dataset} --model {self.model}"
        return f"fewshot extract {model} --if-exists overwrite"

    @contextmanager
    def _open(self) -> Iterator[Any]:
        if stamp(self.path) != self.stamp:
            raise UserError(f"{self.path} was replaced while in use; run again")
        with reading(self.path) as file:
            yield file

    @contextmanager
    def _split(self, split: str) -> Iterator[Any]:
        if split not in self.splits:
            raise UserError(
                f"{self.path} has no {split} split, only {', '.join(self.splits)}; "
                "choose a protocol that needs no other"
            )
        with self._open() as file:
            yield file[split]


def _whole(dataset: Any, dtype: type[np.generic]) -> NDArray[Any]:
    return np.asarray(dataset[:], dtype=dtype)


def _encoded(group: Any) -> NDArray[np.int64]:
    return _whole(group["rows"], np.int64) if "rows" in group else np.arange(len(group["labels"]))

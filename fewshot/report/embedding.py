"""t-SNE of test images before and after adaptation, from a store and a result's settings."""

from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

from cache.errors import UserError, count
from cache.pair import Pair, found
from cache.store import FeatureStore
from fewshot.fitting import fit
from fewshot.methods import METHODS
from fewshot.metrics import accuracy
from fewshot.report.content import Maps, Section
from fewshot.report.lines import largest
from fewshot.results.groups import Cells, labels
from fewshot.results.log import Result
from fewshot.run import plain_setting
from fewshot.store_features import query

IMAGES = 2000
CLASSES = 10
SEED = 0
TOLERANCE = 0.002  # of the accuracy reached again
SETTINGS = ("few-shot", "zero-shot", "unsupervised")


def maps_section(rows: Cells, methods: Collection[str], root: Path) -> Section:
    """Maps for each of the methods and datasets, of the row's most shots and first seed.

    Args:
        rows: The results.
        methods: Names of those to draw.
        root: Where stores lie.

    Raises:
        UserError: A method that none of the results is of.
    """
    made = Section("Test images before and after adaptation")
    made.notes.append(
        "t-SNE of test images of the classes that have most of them: of the image features, and of "
        "the logits of the fitted classifier. Distances between clusters mean little in such maps."
    )
    names = labels(rows)
    known = {row.method for row in rows}
    for method in methods:
        if method not in known:
            raise UserError(
                f"--tsne: none of the results is of {method!r}; they are of "
                f"{', '.join(sorted(known))}"
            )
    for row, _, group in largest(rows):
        if row.method not in methods:
            continue
        name = f"{names[row]} on {row.dataset}, {row.model}, {row.setting}, tuned by {row.tune}"
        if plain_setting(row.setting) not in SETTINGS:
            made.notes.append(f"Not drawn: {name}; maps are of {', '.join(SETTINGS)} alone.")
            continue
        try:
            maps, note = draw_maps(found(root, row.dataset, row.model)[0], group[0])
        except UserError as error:
            made.notes.append(f"Not drawn: {name}; {error}.")
            continue
        made.blocks[f"tsne-{name}"] = maps
        made.notes += note
    return made


def draw_maps(store: FeatureStore, result: Result) -> tuple[Maps, list[str]]:
    """Features and logits of the result's classifier, fitted again, in two dimensions.

    Raises:
        UserError: The store is not the one tested on, or the method is not known here.
    """
    features, logits, notes = refit(store, result)
    rows, of, classes = chosen(store.labels("test"))
    panels = {
        "image features": embed(features.numpy()[rows]),
        f"logits of {result.method}": embed(logits.numpy()[rows]),
    }
    shots = f"{count(result.shots, 'shot')}, seed {result.seed}" if result.shots else "no shots"
    title = f"{result.method} on {result.dataset}, {shots}"
    return Maps(title, panels, of, [store.classnames[k] for k in classes]), notes


def refit(store: FeatureStore, result: Result) -> tuple[Tensor, Tensor, list[str]]:
    """(M, D) test features, (M, C) logits of the result's classifier, and what to say of these.

    It is fitted with the hyper-parameters that the result has, and tuned no more.

    Raises:
        UserError: The store is not the one tested on, or the method is not known here.
    """
    if store.fingerprint != result.fingerprint:
        raise UserError(f"{store.path} is another store than the one that was tested on")
    if result.method not in METHODS:
        raise UserError(f"{result.method} cannot be fitted on stored features")
    kind: Any = METHODS[result.method]
    known = {field.name for field in fields(kind)} & set(result.hyperparameters)
    method = kind(**{name: result.hyperparameters[name] for name in known})
    if isinstance(store, Pair):
        store = store.at(result.measures["pair_weight"])
    fitted = fit(
        store, method, shots=result.shots, seed=result.seed, tune="none",
        fixed=known, prompt_set=result.prompt_set, views=result.n_views != 1,
    )  # fmt: skip
    test = store.split("test")
    features = query(test, method)
    logits = fitted.classifier.logits(features)
    reached = accuracy(logits.argmax(dim=1), torch.from_numpy(test.labels))
    if abs(reached - result.accuracy) <= TOLERANCE:
        return features, logits, []
    note = (
        f"{result.method} on {result.dataset} fitted again reaches {100 * reached:.1f} %, not "
        f"{100 * result.accuracy:.1f} %: its few shots came from a file, or versions differ."
    )
    return features, logits, [note]


def chosen(
    truth: NDArray[np.int64], n_classes: int = CLASSES, n_images: int = IMAGES
) -> tuple[NDArray[np.int64], NDArray[np.int64], Sequence[int]]:
    """Rows of the most frequent classes, their places among these, and the classes.

    Of equally frequent classes the first are taken, and of too many rows evenly spaced ones.
    """
    counts = np.bincount(truth)
    classes = np.sort(np.argsort(-counts, kind="stable")[:n_classes])
    classes = classes[counts[classes] > 0]
    rows = np.flatnonzero(np.isin(truth, classes))
    if len(rows) > n_images:
        rows = rows[np.linspace(0, len(rows) - 1, n_images).astype(np.int64)]
    return rows, np.searchsorted(classes, truth[rows]), [int(k) for k in classes]


def embed(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """(M, 2) t-SNE of (M, D) points, the same every time.

    Raises:
        UserError: Fewer points than a map needs.
    """
    if len(points) < 4:
        raise UserError(
            f"{count(len(points), 'test image is', 'test images are')} too few for a map"
        )
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED)
    return np.asarray(tsne.fit_transform(points), np.float64)

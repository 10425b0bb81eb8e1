"""The main job in miniature, and photographs to try one's own hand on."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cache.datasets.layouts import digits
from cache.datasets.manifest import load_manifest
from cache.errors import UserError
from cache.location import bank_path, store_path
from cache.store import FeatureStore
from fewshot.evaluation import evaluate
from fewshot.results.log import Result
from fewshot.results.plots import accuracy_against_shots
from fewshot.results.summaries import curves

SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2, 3)
LABELED = 20  # photographs in each class folder
UNLABELED = 100
SIDE = 64  # pixels


def extract_digits(root: Path) -> tuple[FeatureStore, int]:
    """Encode the digits with the bundled model into a store below `root`.

    Returns:
        The store, and the number of its images.
    """
    from cache.datasets.resolving import data_root, resolve
    from cache.extract import default_workers, extract
    from cache.identity import Recipe
    from cache.models.loading import load
    from cache.prompts import prompt_sets

    path = store_path(root, "digits", "tiny")
    source = resolve(load_manifest("digits"), data_root(None))
    recipe = Recipe(prompt_sets(source.classnames, source.templates))
    extract(source, load("tiny"), recipe, path, bank=bank_path(root), workers=default_workers())
    return FeatureStore.open(path), sum(map(len, source.splits.values()))


def run(store: FeatureStore, advance: Callable[[int], None] = lambda n: None) -> list[Result]:
    """Zero-shot once, and GDA with every number of shots and every seed.

    Args:
        store: The features.
        advance: Called after each fit.
    """
    results = [evaluate(store, "zero-shot")]
    for shots in SHOTS:
        for seed in SEEDS:
            results.append(evaluate(store, "gda", shots=shots, seed=seed))
            advance(1)
    return results


def plot(results: Sequence[Result], path: Path) -> None:
    """Write accuracy against shots as a PNG; what uses no shots is a level."""
    rows = curves(results)
    learned = {row.method: points for row, points in rows.items() if points[0][0] > 0}
    levels = {row.method: points[0][1] for row, points in rows.items() if points[0][0] == 0}
    accuracy_against_shots(learned, levels, f"{results[0].dataset}, {results[0].model}", path)


def write_photos(folder: Path) -> tuple[int, int]:
    """Write digits as somebody's photographs: a folder for each class, and one without labels.

    Args:
        folder: A new folder, or an empty one.

    Returns:
        How many have labels, and how many have none.

    Raises:
        UserError: There is something in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; name a new one")
    listing = digits.read(load_manifest("digits"), folder)
    written: dict[str, int] = {}
    for item in listing.splits["train"]:
        name = listing.classnames[item.label]
        written[name] = written.get(name, 0) + 1
        if written[name] <= LABELED:
            _write_photo(item.path, folder / name / f"{written[name]:02d}.png")
    unlabeled = listing.splits["test"][:: len(listing.splits["test"]) // UNLABELED][:UNLABELED]
    for i, item in enumerate(unlabeled):
        _write_photo(item.path, folder / "unlabeled" / f"{i:03d}.png")
    return LABELED * len(listing.classnames), len(unlabeled)


def _write_photo(path: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digits.image(path).resize((SIDE, SIDE)).save(target)

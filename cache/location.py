"""Which store is meant."""

from pathlib import Path

from cache.errors import UserError
from cache.manifest import all_manifests, load_manifest
from cache.store import find_stores, store_path


def find_store(
    root: Path, dataset: str | None = None, model: str | None = None
) -> tuple[Path, bool]:
    """The store of a dataset and a model under `root`; of several, the one extracted last.

    Args:
        root: The folder of stores, or one store's file.
        dataset: A name or an alias; any dataset without it.
        model: Any model without it.

    Returns:
        Its path, and whether there were others to choose from.

    Raises:
        UserError: There is none; says which command makes it.
    """
    if root.is_file():
        return root, False
    known = find_stores(root)
    if dataset is not None:
        dataset = _canonical(dataset)
        known = [p for p in known if p.parent.name == store_path(root, dataset, "x").parent.name]
    if model is not None:
        known = [p for p in known if p.name == store_path(root, "x", model).name]
    if not known:
        what = " ".join(
            [f"--dataset {dataset or 'NAME'}", *([f"--model {model}"] if model else [])]
        )
        there = sorted({f"{p.parent.name}/{p.stem}" for p in find_stores(root)})
        others = f"; there are {', '.join(there[:8])}" if there else ""
        raise UserError(f"no such store under {root}{others}; make it with: fewshot extract {what}")
    return known[0], len(known) > 1


def _canonical(dataset: str) -> str:
    """A dataset's name for any of its aliases; other names are the user's own and stay."""
    names = {name.lower() for m in all_manifests() for name in (m.name, *m.aliases)}
    return load_manifest(dataset).name if dataset.lower() in names else dataset

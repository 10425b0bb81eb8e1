"""Where stores lie, how models are called, and which store is meant."""

import hashlib
import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cache.datasets.addresses import address_of, is_remote
from cache.datasets.layouts.shard_names import dataset_name, is_pattern
from cache.datasets.manifest import all_manifests, load_manifest
from cache.errors import UserError
from cache.files.names import name_of, safe_name


def default_root() -> Path:
    """The folder of stores: `$FEWSHOT_STORE`, else `./features`."""
    return Path(os.environ.get("FEWSHOT_STORE") or "features").expanduser()


NOTHING: Mapping[str, Path | None] = {}
IMAGE_ONLY = "timm:"  # begins the names of models without a text tower


def model_name(text: str) -> str:
    """The one spelling of a model's name: `ViT-B-16,openai` becomes `ViT-B-16/openai`."""
    text = text.strip()
    # hf-hub:OWNER/NAME, local-dir:PATH, timm:NAME and ARCH@PATH mean what they say.
    if ":" in text or "@" in text:
        return text
    return "/".join(part.strip() for part in text.split(",", maxsplit=1))


def weights_file(model: str) -> tuple[str, Path | None]:
    """The architecture and the file of `ARCH@PATH`; the name itself and None of any other."""
    arch, at, path = model.partition("@")
    if not at or model.startswith(("hf-hub:", "local-dir:")):
        return model, None
    return arch, Path(path)


def pair_names(model: str) -> tuple[str, str] | None:
    """The two models of a pair `FIRST+SECOND`; None for one model.

    A plus in the name of a folder or a file that is there does not make a pair.

    Raises:
        UserError: It names more than two, or one of them is missing.
    """
    file = weights_file(model)[1]
    if model.startswith("local-dir:"):
        file = Path(model.removeprefix("local-dir:"))
    if "+" not in model or (file is not None and file.exists()):
        return None
    names = [model_name(name) for name in model.split("+")]
    if len(names) != 2 or not all(names):
        raise UserError(
            f"a pair is two models with + between, such as timm:NAME+ViT-B-16/openai; got {model}"
        )
    return names[0], names[1]


def store_path(root: Path, dataset: str, model: str) -> Path:
    """Where the store of a dataset and a model lies: `root/<dataset>/<model>.h5`.

    A model in a folder or a file is told apart by its absolute path: equal names are common.
    """
    model = model_name(model)
    arch, file = weights_file(model)
    if model.startswith("local-dir:"):
        arch, file = "local-dir", Path(model.removeprefix("local-dir:"))
    if file is not None:
        path = file.absolute()
        model = f"{arch}-{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    return root / safe_name(dataset) / f"{safe_name(model)}.h5"


def bank_path(root: Path) -> Path:
    """The file beside the stores that keeps features apart from any of them."""
    return root / ".bank.sqlite"


def find_stores(root: Path) -> list[Path]:
    """Every store under `root`, the newest first."""
    return sorted(root.glob("*/*.h5"), key=lambda path: (-path.stat().st_mtime_ns, path))


def find_store(
    root: Path, dataset: str | None = None, model: str | None = None
) -> tuple[Path, bool]:
    """The store of a dataset and a model under `root`; of several, the one extracted last.

    Args:
        root: The folder of stores, or one store's file, which may be a URL.
        dataset: A name, an alias, or the folder, table or shards that were extracted; any without
            it.
        model: Any model without it.

    Returns:
        Its path, and whether there were others to choose from.

    Raises:
        UserError: There is none; says which command makes it.
    """
    if root.is_file() or is_remote(address_of(root)):
        return root, False
    known = find_stores(root)
    asked = dataset
    if dataset is not None:
        dataset = _canonical(dataset)
        known = [p for p in known if p.parent.name == store_path(root, dataset, "x").parent.name]
    if model is not None:
        known = [p for p in known if p.name == store_path(root, "x", model).name]
    if not known:
        what = shlex.join(["--dataset", asked or "NAME", *(["--model", model] if model else [])])
        there = sorted({f"{p.parent.name}/{p.stem}" for p in find_stores(root)})
        others = f"; there are {', '.join(there[:8])}" if there else ""
        raise UserError(f"no such store under {root}{others}; make it with: fewshot extract {what}")
    return known[0], len(known) > 1


def _canonical(dataset: str) -> str:
    """A dataset's name for any of its aliases, or for its folder, table or shards; others stay."""
    names = {name.lower() for m in all_manifests() for name in (m.name, *m.aliases)}
    if dataset.lower() in names:
        return load_manifest(dataset).name
    if is_pattern(dataset):
        return dataset_name(dataset)
    path = Path(dataset)
    if path.is_dir():
        return name_of(path)
    return name_of(path.with_suffix("")) if path.is_file() else dataset


def require_outside(photos: Path, places: Mapping[str, Path]) -> None:
    """Nothing may be written among the photos, where the next run would take it for a class.

    Args:
        photos: A folder of them; anything else is no matter.
        places: Option -> where it says that something is written.

    Raises:
        UserError: One of these lies among the photos.
    """
    for option, path in places.items():
        if photos.is_dir() and path.resolve().is_relative_to(photos.resolve()):
            raise UserError(
                f"{path} lies in the folder of photos, and would be taken for a class; "
                f"give {option} another place"
            )


def require_writable(
    *, files: Mapping[str, Path | None] = NOTHING, folders: Mapping[str, Path | None] = NOTHING
) -> None:
    """Raise unless files and folders can be made at these places; called before the work.

    Args:
        files: Option -> the file that it says to write, which need not be there yet.
        folders: Option -> the folder that it says to write into.

    Raises:
        UserError: A folder of one of these is read-only or takes no files, a file is in the place
            of a folder, or a folder in that of a file.
    """
    for option, path in {**files, **folders}.items():
        if path is None:
            continue
        there = next(one for one in (path, *path.absolute().parents) if one.exists())
        folder = there.parent if there.is_file() else there
        why = ""
        if there.is_file() and (there != path or option in folders):
            why = f"{there} is a file"
        elif path.is_dir() and option in files:
            why = f"{path} is a folder"
        elif not os.access(folder, os.W_OK | os.X_OK):
            why = f"{there} is read-only"
        else:
            try:  # root may write into /proc, by its mode, and cannot
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as error:
                why = f"{folder} takes no files ({error.strerror})"
        if why:
            raise UserError(f"cannot write {path}: {why}; give {option} another place")

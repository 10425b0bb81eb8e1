'''A dataset's declaration: one TOML file in `data_manifests/`, or a user's own.

Every key there is; those marked * must be given:

    name = "dtd"                        * letters, digits, ".", "-", "_"
    aliases = ["textures"]
    title = "Describable Textures"      *
    templates = ["{} texture."]         * each with one {} for the class name
    n_classes = 47                      checked where given
    license = "..."                     or licence
    homepage = "..."
    obtain = """..."""                  how to get the data, in words
    torchvision = "DTD"                 class of torchvision.datasets that reads its own layout

    [sizes]                             rows per split, checked where given
    train = 2820

    [layout]                            *
    kind = "split-file"                 * split-file, aircraft, imagenet, imagenet-variant, folder,
                                        table, list-file or digits
    directory = "dtd"                   below the data root
    images = "images"                   below `directory`; paths of images are relative to it
    split_file = "split_zhou_X.json"    below `directory`: CoOp's split, the table, or the list,
                                        in whose name {split} stands for train, val or test
    names = "classes.txt"               below `directory`: class names of a list, one per line
    checksum = "sha256:..."             of split_file, or "git-blob-sha1:..."; checked where given

    [template_sets]                     further ones by name
    single = ["a photo of a {}."]

    [classnames]                        where names come from the data, not from a split file
    drop = ["Faces_easy"]
    rename = { Faces = "face" }
'''

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.errors import UserError, unknown
from cache.toml_table import parse_toml

SPLITS = ("train", "val", "test")
LAYOUTS = (
    "split-file",
    "aircraft",
    "imagenet",
    "imagenet-variant",
    "folder",
    "table",
    "list-file",
    "digits",
)
TORCHVISION = (
    "Caltech101",
    "DTD",
    "EuroSAT",
    "FGVCAircraft",
    "Flowers102",
    "Food101",
    "OxfordIIITPet",
    "StanfordCars",
    "SUN397",
)
_DIRECTORY = Path(__file__).resolve().parents[1] / "data_manifests"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_CHECKSUM = r"(sha256:[0-9a-f]{64}|git-blob-sha1:[0-9a-f]{40})?"


@dataclass(frozen=True)
class Layout:
    """Where a dataset lies below the data root, and in what form.

    Attributes:
        kind: One of `LAYOUTS`.
        directory: Below the data root.
        images: Below `directory`; paths of images are relative to it.
        split_file: Below `directory`: CoOp's split, the table or the list; empty where the kind
            has none.
        checksum: `sha256:...` or `git-blob-sha1:...` of the split file; empty where unchecked.
        names: Below `directory`: class names of a list; empty where its folders name them.
    """

    kind: str
    directory: str
    images: str
    split_file: str
    checksum: str
    names: str = ""


@dataclass(frozen=True)
class Manifest:
    """One dataset's declaration, checked.

    Attributes:
        name: How commands and stores call it.
        aliases: Other names; letter case, "-" and "_" never matter.
        title: Its full name.
        n_classes: Classes it must have; None where the file does not say.
        sizes: Rows its splits must have, by split; empty where the file does not say.
        layout: Where it lies on disk.
        templates: Prompts to use where nothing else is asked for, with {} for the class name.
        template_sets: Further sets of prompts, by name.
        rename: Class names as the data has them -> as published.
        drop: Classes of the data that the benchmark leaves out, as the data has them.
        torchvision: Class of `torchvision.datasets` that reads it; empty where there is none.
        license: In a few words.
        homepage: Address.
        obtain: How to get the data, in words.
        digest: sha256 of the file's bytes, in hex.
    """

    name: str
    aliases: tuple[str, ...]
    title: str
    n_classes: int | None
    sizes: Mapping[str, int]
    layout: Layout
    templates: tuple[str, ...]
    template_sets: Mapping[str, tuple[str, ...]]
    rename: Mapping[str, str]
    drop: tuple[str, ...]
    torchvision: str
    license: str
    homepage: str
    obtain: str
    digest: str


def load_manifest(name: str, file: Path | None = None) -> Manifest:
    """The manifest called `name`, or the one in `file`.

    Args:
        name: A dataset's name or alias. With `file` it may be empty; otherwise it must fit.
        file: A manifest of the user's own.

    Raises:
        UserError: No such dataset, or a file that is not a valid manifest.
    """
    manifests = all_manifests() if file is None else [_read(file)]
    for manifest in manifests:
        if _key(name) in map(_key, (manifest.name, *manifest.aliases)):
            return manifest
    if file is not None and not name:
        return manifests[0]
    raise unknown(
        f"dataset{f' in {file}' if file else ''}",
        name,
        [m.name for m in manifests],
        see="fewshot datasets",
    )


@functools.cache
def _shipped() -> tuple[Manifest, ...]:
    return tuple(_read(file) for file in sorted(_DIRECTORY.glob("*.toml")))


def all_manifests() -> list[Manifest]:
    """Every manifest that comes with the program, by name."""
    return list(_shipped())


def describe(manifest: Manifest) -> str:
    """Lines for a reader: what a dataset is and how to get it."""
    layout = manifest.layout
    sizes = ", ".join(f"{split} {size:,}" for split, size in manifest.sizes.items())
    place = "/".join(part for part in (layout.directory, layout.images) if part)
    facts = {
        "aliases": ", ".join(manifest.aliases),
        "classes": "" if manifest.n_classes is None else str(manifest.n_classes),
        "images": sizes,
        "templates": " | ".join(manifest.templates),
        **{f"  {name}": " | ".join(set_) for name, set_ in manifest.template_sets.items()},
        "layout": f"{layout.kind}{f', below the data root at {place}/' if place else ''}",
        "split file": "/".join(part for part in (layout.directory, layout.split_file) if part)
        if layout.split_file
        else "",
        "checksum": layout.checksum,
        "torchvision": manifest.torchvision,
        "license": manifest.license,
        "homepage": manifest.homepage,
    }
    lines = [f"{manifest.name}: {manifest.title}"]
    lines += [f"  {fact:<12} {value}" for fact, value in facts.items() if value]
    if manifest.obtain:
        lines += ["  how to get it", *(f"    {line}" for line in manifest.obtain.splitlines())]
    return "\n".join(lines)


def _key(name: str) -> str:
    """A name with all that does not matter in it taken out."""
    return re.sub(r"[-_ ]", "", name).lower()


def _read(file: Path) -> Manifest:
    """The manifest in a file, or the error that names file, key, expected and got."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the manifest {file}: {error.strerror}") from error
    table = parse_toml(content, str(file))
    layout = table.table("layout", required=True)
    classnames = table.table("classnames")
    sets = table.table("template_sets")
    sizes = table.table("sizes")
    manifest = Manifest(
        name=table.text("name", required=True, pattern=_NAME),
        aliases=table.texts("aliases"),
        title=table.text("title", required=True),
        n_classes=table.integer("n_classes", at_least=2),
        sizes={s: n for s in SPLITS if (n := sizes.integer(s, at_least=1)) is not None},
        layout=Layout(
            kind=layout.text("kind", required=True, choices=LAYOUTS),
            directory=layout.text("directory"),
            images=layout.text("images"),
            split_file=layout.text("split_file"),
            names=layout.text("names"),
            checksum=layout.text("checksum", pattern=_CHECKSUM),
        ),
        templates=table.templates("templates", required=True),
        template_sets={name: sets.templates(name) for name in sets.content},
        rename=classnames.table("rename").all_texts(),
        drop=classnames.texts("drop"),
        torchvision=table.text("torchvision", choices=TORCHVISION),
        license=table.text("license") or table.text("licence"),
        homepage=table.text("homepage"),
        obtain=table.text("obtain").strip(),
        digest=hashlib.sha256(content).hexdigest(),
    )
    for name in sets.content:
        if not re.fullmatch(_NAME, name):
            raise sets.error(name, f"a name like {_NAME}", name)
    if (
        manifest.layout.kind in ("split-file", "table", "list-file")
        and not manifest.layout.split_file
    ):
        raise layout.error("split_file", f"the file a {manifest.layout.kind} layout reads", None)
    for part in (table, layout, classnames, sets, sizes):
        part.refuse_unread()
    return manifest

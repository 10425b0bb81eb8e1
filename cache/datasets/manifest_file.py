r'''A dataset's declaration: a TOML file in `data_manifests/`, or a user's own.

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
    metric = "per-class"                or accuracy, the default: what is published of it
    known = 25                          in published open sets the first so many classes are known

    [sizes]                             rows per split, checked where given
    train = 2820

    [content]                           digest of each split's images, as stores and results have
    test = "9f86d0..."                  it; another one is said

    [layout]                            *
    kind = "split-file"                 * split-file, aircraft, imagenet, imagenet-variant, folder,
                                        table, list-file, proposed-split or digits
    directory = "dtd"                   below the data root
    images = "images"                   below `directory`; paths of images are relative to it
    split_file = "split_zhou_X.json"    below `directory`: CoOp's split, the table, or the list,
                                        in whose name {split} stands for train, val or test
    names = "classes.txt"               below `directory`: class names of a list, one per line
    labels = "folders"                  folders say the classes, and not the numbers of a list
    checksum = "sha256:..."             of split_file, or "git-blob-sha1:..."; checked where given

    [layout.lists]                      names of lists that differ by more than {split}
    train = "train800.txt"

    [layout.checksums]                  of a list of each split
    train = "sha256:..."

    [template_sets]                     further ones by name
    single = ["a photo of a {}."]

    [classnames]                        where names come from the data, not from a split file
    drop = ["Faces_easy"]
    rename = { Faces = "face" }
    replace = { '^\d+\.' = "" }          in each name of a list or proposed split
    names = ["face", "leopard"]         by label, where the data has none

Several datasets of one kind share a file, in which each has what is its own:

    [datasets.NAME]
    title = "..."
    layout.directory = "..."
'''

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import UserError
from cache.files.toml_table import TomlTable, parse_toml

SPLITS = ("train", "val", "test")
LAYOUTS = (
    "split-file",
    "aircraft",
    "imagenet",
    "imagenet-variant",
    "folder",
    "table",
    "list-file",
    "proposed-split",
    "digits",
)
LISTED = ("split-file", "table", "list-file", "proposed-split")  # by the file `split_file`
METRICS = ("accuracy", "per-class")
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
        labels: `folders` where these say the classes, and not the numbers of a list.
        lists: Split -> its list below `directory`, where `split_file` does not say.
        checksums: Split -> checksum of its list.
    """

    kind: str
    directory: str
    images: str
    split_file: str
    checksum: str
    names: str = ""
    labels: str = ""
    lists: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)


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
        replace: Regular expression -> what takes the place of its matches in class names.
        classnames: By label, where the data has no names; empty elsewhere.
        content: Split -> digest of its images' bytes; empty where unknown.
        metric: One of `METRICS`: what is published of it.
        known: In published open sets, how many of the first classes are known; None without any.
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
    replace: Mapping[str, str] = field(default_factory=dict)
    classnames: tuple[str, ...] = ()
    content: Mapping[str, str] = field(default_factory=dict)
    metric: str = "accuracy"
    known: int | None = None

    def called(self, name: str) -> str:
        """The class name that is published for one of the data."""
        for pattern, text in self.replace.items():
            name = re.sub(pattern, text, name)
        return self.rename.get(name, name)


def read_manifests(file: Path) -> list[Manifest]:
    """The manifests in a file, in its order.

    Raises:
        UserError: It cannot be read, or is none: names file, key, expected and got.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the manifest {file}: {error.strerror}") from error
    table, digest = parse_toml(content, str(file)), hashlib.sha256(content).hexdigest()
    each = table.table("datasets")
    if not each.content:
        return [_manifest(table, digest)]
    shared = {key: value for key, value in table.content.items() if key != "datasets"}
    return [
        _manifest(
            TomlTable(_over(shared, {**each.table(name).content, "name": name}), where), digest
        )
        for name in each.content
        for where in [f"{file}, datasets.{name}"]
    ]


def _over(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Both, table within table; of two values the own one."""
    inner = {
        key: _over(shared[key], value)
        for key, value in own.items()
        if isinstance(value, dict) and isinstance(shared.get(key), dict)
    }
    return {**shared, **own, **inner}


def _manifest(table: TomlTable, digest: str) -> Manifest:
    layout = table.table("layout", required=True)
    lists, checksums = layout.table("lists"), layout.table("checksums")
    classnames = table.table("classnames")
    sets = table.table("template_sets")
    sizes, content = table.table("sizes"), table.table("content")
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
            labels=layout.text("labels", choices=("folders",)),
            checksum=layout.text("checksum", pattern=_CHECKSUM),
            lists={s: name for s in SPLITS if (name := lists.text(s))},
            checksums={s: sum_ for s in SPLITS if (sum_ := checksums.text(s, pattern=_CHECKSUM))},
        ),
        templates=table.templates("templates", required=True),
        template_sets={name: sets.templates(name) for name in sets.content},
        rename=classnames.table("rename").all_texts(),
        drop=classnames.texts("drop"),
        torchvision=table.text("torchvision", choices=TORCHVISION),
        license=table.text("license") or table.text("licence"),
        homepage=table.text("homepage"),
        obtain=table.text("obtain").strip(),
        digest=digest,
        replace=_patterns(classnames.table("replace")),
        classnames=classnames.texts("names"),
        content={s: d for s in SPLITS if (d := content.text(s, pattern="[0-9a-f]{64}"))},
        metric=table.text("metric", choices=METRICS) or "accuracy",
        known=table.integer("known", at_least=2),
    )
    for name in sets.content:
        if not re.fullmatch(_NAME, name):
            raise sets.error(name, f"a name like {_NAME}", name)
    kind, named = manifest.layout.kind, manifest.layout.split_file
    if kind in LISTED and not named and not (kind == "list-file" and manifest.layout.lists):
        raise layout.error("split_file", f"the file a {kind} layout reads", None)
    for part in (table, layout, lists, checksums, classnames, sets, sizes, content):
        part.refuse_unread()
    return manifest


def _patterns(table: TomlTable) -> dict[str, str]:
    """Regular expression -> text, which may be empty."""
    for pattern in table.content:
        try:
            re.compile(pattern)
        except re.error as error:
            raise table.error(pattern, f"a regular expression ({error})", pattern) from None
    return {pattern: table.text(pattern) for pattern in table.content}

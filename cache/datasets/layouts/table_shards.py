"""Shards that are tables with images in a column: parquet, and the Arrow files of Hugging Face.

A cell holds the bytes of a file, or a struct of `bytes` and `path` as Hugging Face's `datasets`
writes one. Names of classes are in the schema, where that library wrote it.
"""

import functools
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np

from cache.datasets import addresses
from cache.datasets.layouts.conventions import columns
from cache.datasets.layouts.shard_listing import (
    THREADS,
    ShardedImage,
    ShardRows,
    Shards,
    listing_of,
)
from cache.datasets.listing import Listing
from cache.datasets.reader import Stamp
from cache.errors import UserError, excerpt
from cache.images import decode
from cache.progress import progress

GROUPS_HELD = 4  # row groups in memory, usually of 100 or 1,000 images
_one_at_a_time = threading.Lock()  # or every thread would read the same group


class _Columns(NamedTuple):
    """The columns of a shard that matter, and the class names that its schema has."""

    image: str
    label: str
    classname: str
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TableRows:
    """Reads images from rows of tables, a row group at a time."""

    shards: Shards
    image: str  # the column
    groups: Mapping[str, tuple[int, tuple[int, ...]]]  # shard -> its number, groups' first rows

    def place(self, path: str) -> str:
        """The shard's address and the row's number."""
        return f"{self.shards.root}{path}"

    def stamp(self, path: str) -> Stamp:
        """The stamp of the whole shard, when it was listed."""
        return self.shards.stamps[self.groups[path.rpartition("/")[0]][0]]

    def content(self, path: str) -> bytes:
        """The bytes in the cell."""
        shard, _, last = path.rpartition("/")
        (number, starts), row = self.groups[shard], int(last)
        group = int(np.searchsorted(starts, row, side="right")) - 1
        address = self.shards.address(number)
        try:
            with _one_at_a_time:
                cells = _cells(address, self.shards.stamps[number], self.image, group)
            found = cells[row - starts[group]].as_py()
        except (ValueError, IndexError) as error:  # Arrow's errors are ValueErrors
            raise OSError(f"{address} is damaged ({error})") from error
        content = found.get("bytes") if isinstance(found, dict) else found
        if not isinstance(content, bytes):
            raise OSError(f"no bytes in the column {self.image}, but {excerpt(found)}")
        return content

    def check(self, path: str, max_pixels: int) -> None:
        """Look at a cell of a local shard as at a file; a remote one is left until it is read."""
        if not addresses.is_remote(self.shards.root):
            decode.check_file(self.content(path), max_pixels=max_pixels)

    def changed_since(self, moment: int, paths: Iterable[str]) -> list[str]:
        """The paths in shards that are not as they were listed, whenever that changed."""
        del moment
        changed = {self.shards.paths[number] for number in self.shards.changed()}
        return [path for path in paths if path.rpartition("/")[0] in changed]


def read(found: Sequence[str], labeled: bool = True) -> Listing:
    """The listing of the shards at these addresses.

    Args:
        found: The addresses.
        labeled: True if the images have labels; else all are of a train split.

    Raises:
        UserError: pyarrow is missing, or a shard; one is damaged, or has no column of images or of
            labels.
    """
    _pyarrow()
    shards = Shards.of(found)
    with ThreadPoolExecutor(THREADS) as pool, progress("shards listed", len(found)) as advance:
        listed = []
        for one in pool.map(lambda i: _listed(shards, i), range(len(found))):
            listed.append(one)
            advance(1)
    about = listed[0].columns
    for shard, other in zip(shards.paths, listed, strict=True):
        if (other.columns.image, other.columns.names) != (about.image, about.names):
            raise UserError(
                f"{shard} has another column of images or other class names than "
                f"{shards.paths[0]}; give shards of one dataset"
            )
    groups = {shards.paths[i]: (i, one.starts) for i, one in enumerate(listed)}
    reader = TableRows(shards, about.image, groups)
    images = [one.images for one in listed]
    return listing_of(shards, images, reader, about.names, labeled=labeled)


class _Listed(NamedTuple):
    """A shard's columns, the first rows of its groups, and its images."""

    columns: _Columns
    starts: tuple[int, ...]
    images: ShardRows


def _listed(shards: Shards, number: int) -> _Listed:
    address, shard = shards.address(number), shards.paths[number]
    try:
        if _is_arrow(address):
            table = _arrow_table(address)
            schema, sizes = table.schema, [len(table)]
        else:
            schema, sizes, table = addresses.through(address, _parquet_labels)
        about = _columns(schema, address)
        labels, names = (
            _texts(table.column(name)) if name else [""] * sum(sizes)
            for name in (about.label, about.classname)
        )
    except OSError as error:
        raise UserError(f"cannot read {address}: {error}; get it again") from error
    except ValueError as error:  # Arrow's errors are ValueErrors
        if isinstance(error, UserError):
            raise
        raise UserError(f"{address} is cut off or no table ({error}); get it again") from error
    pairs = enumerate(zip(labels, names, strict=True))
    images = ShardRows.of(ShardedImage(f"{shard}/{i}", *said) for i, said in pairs)
    return _Listed(about, (0, *np.cumsum(sizes)[:-1].tolist()), images)


def _parquet_labels(file: IO[bytes]) -> tuple[Any, list[int], Any]:
    """A file's schema, the sizes of its row groups, and the columns that are no images."""
    opened = _pyarrow().parquet.ParquetFile(file)
    about = _columns(opened.schema_arrow, "")
    sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
    wanted = [name for name in (about.label, about.classname) if name]
    return opened.schema_arrow, sizes, opened.read(columns=wanted)


def _columns(schema: Any, address: str) -> _Columns:
    """The columns of images, labels and their names, as the schema or their names say."""
    pa = _pyarrow()
    features = _features(schema.metadata or {})
    header = list(schema.names)

    def holds_bytes(name: str) -> bool:
        kind = schema.field(name).type
        if pa.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    of_kind = {
        kind: [name for name, feature in features.items() if feature.get("_type") == kind]
        for kind in ("Image", "ClassLabel")
    }
    images = of_kind["Image"] or list(filter(holds_bytes, header))
    taken = columns([name for name in header if name not in images])
    label = next(iter(of_kind["ClassLabel"]), taken.get("label", ""))
    if len(images) != 1:
        raise UserError(
            f"{address} must have one column of images' bytes; it has {', '.join(header[:8])}"
        )
    names = features.get(label, {}).get("names") or ()
    return _Columns(images[0], label, taken.get("classname", ""), tuple(map(str, names)))


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Column -> what Hugging Face's library wrote of it into the schema; empty without that."""
    try:
        found = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)}


def _texts(column: Any) -> list[str]:
    """The values as text, empty where there is none."""
    return ["" if value is None else str(value).strip() for value in column.to_pylist()]


def _is_arrow(address: str) -> bool:
    return address.casefold().endswith(".arrow")


@functools.lru_cache(GROUPS_HELD)
def _cells(address: str, stamp: Stamp, column: str, group: int) -> Any:
    """The cells of a row group, as an Arrow array."""
    del stamp  # another one is another file
    if _is_arrow(address):
        return _arrow_table(address).column(column)

    def read(file: IO[bytes]) -> Any:
        opened = _pyarrow().parquet.ParquetFile(file)
        return opened.read_row_group(group, columns=[column]).column(column)

    return addresses.through(address, read)


def _arrow_table(address: str) -> Any:
    """The table in an Arrow file, memory-mapped where it is local."""
    pa = _pyarrow()
    remote = addresses.is_remote(address)
    source = pa.BufferReader(addresses.read(address)) if remote else pa.memory_map(address)
    try:
        return pa.ipc.open_stream(source).read_all()  # as `save_to_disk` writes it
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


def _pyarrow() -> Any:
    """The library, imported where it is needed.

    Raises:
        UserError: It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "shards of parquet or Arrow need pyarrow; pip install 'fewshot-clip[parquet]'"
        ) from error
    return pyarrow

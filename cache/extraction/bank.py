"""Features kept for each image and prompt, apart from any store, so that none is encoded twice.

One SQLite file beside the stores. A key says what was encoded, an encoder is everything else that
changes a byte: weights, preprocessing, precision, batch size, threads, processor and libraries.
"""

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache.datasets.reader import Stamp
from cache.errors import UserError
from cache.files.json_text import canonical_json

T = TypeVar("T")
FORMAT = 1
WAIT = 600.0  # seconds for another process to end its transaction, which takes milliseconds
AT_ONCE = 500  # keys in one question; SQLite takes 999 in all its versions
# A file modified while it is read may keep its time where clocks are coarse (2 s on FAT), so what
# is younger than this is read again next time.
SETTLED = 3 * 10**9
_TABLES = """
CREATE TABLE encoders (id INTEGER PRIMARY KEY, digest TEXT UNIQUE, name TEXT, what TEXT);
CREATE TABLE vectors (
    id INTEGER PRIMARY KEY, encoder INTEGER, key BLOB, kind TEXT, data BLOB, checksum BLOB,
    UNIQUE (encoder, key)
);
CREATE TABLE uses (
    store TEXT, encoder INTEGER, key BLOB, PRIMARY KEY (store, encoder, key)
) WITHOUT ROWID;
CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, digest BLOB);
"""
# A table that a bank of before lacks, and that an older version leaves alone.
_PLACES = "CREATE TABLE IF NOT EXISTS places (store TEXT PRIMARY KEY, place TEXT)"


class Bank:
    """An open bank. Every change is one transaction: a killed writer leaves all of it or nothing.

    Two processes may write at once; each waits while the other does.

    Attributes:
        path: Its file; a bank in memory is at ":memory:".
        database: The tables in it.
    """

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path, self.database = path, database

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path) -> Iterator[Self]:
        """The bank in a file, which is made if there is none.

        Raises:
            UserError: The file is damaged, of a later version, or cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.closing(
                sqlite3.connect(path, timeout=WAIT, isolation_level=None)
            ) as database:
                bank = cls(path, database)
                bank._prepare()
                yield bank
        except sqlite3.OperationalError as error:  # a full disk, no permission, a lock
            raise UserError(
                f"cannot use {path}: {error}; make it writable, with room on the disk, and run the "
                "same command again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{path} is damaged ({error}); remove it and run the same command again: its "
                "features are computed again"
            ) from error

    def _prepare(self) -> None:
        with self.transaction():
            (version,) = self.database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _TABLES.split(";"):
                    self.database.execute(statement)
                self.database.execute(f"PRAGMA user_version = {FORMAT}")
            if version <= FORMAT:
                self.database.execute(_PLACES)
        if version > FORMAT:
            raise UserError(
                f"{self.path} is of a later version of fewshot (format {version}, this one reads "
                f"{FORMAT}); update fewshot, or give another --store"
            )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block, or nothing of it."""
        self.database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self.database.in_transaction:  # a full disk has ended it already
                self.database.execute("ROLLBACK")
            raise
        self.database.execute("COMMIT")

    def encoder(self, name: str, what: Mapping[str, Any]) -> int:
        """The number of an encoder in this bank.

        Args:
            name: The model as a user calls it.
            what: All that changes a byte of a feature, besides what is encoded.
        """
        spelled = canonical_json(what)
        digest = hashlib.sha256(spelled.encode()).hexdigest()
        with self.transaction():
            self.database.execute(
                "INSERT OR IGNORE INTO encoders (digest, name, what) VALUES (?, ?, ?)",
                (digest, name, spelled),
            )
        asked = "SELECT id FROM encoders WHERE digest = ?"
        return int(self.database.execute(asked, (digest,)).fetchone()[0])

    def get(self, encoder: int, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Key -> (W,) float32 of those that are kept and whole; what is damaged is not there."""
        found = {}
        for some in _chunks(keys):
            marks = ",".join("?" * len(some))
            rows = self.database.execute(
                f"SELECT key, data, checksum FROM vectors WHERE encoder = ? AND key IN ({marks})",
                (encoder, *some),
            )
            for key, data, checksum in rows:
                if checksum == _checksum(key, data):
                    found[key] = np.frombuffer(data, "<f4")
        return found

    def put(
        self, encoder: int, kind: str, keys: Sequence[bytes], vectors: NDArray[np.float32]
    ) -> None:
        """Keep (n, W) vectors under n keys; `kind` is "image" or "prompt"."""
        rows = []
        for key, vector in zip(keys, vectors, strict=True):
            data = vector.astype("<f4").tobytes()
            rows.append((encoder, key, kind, data, _checksum(key, data)))
        with self.transaction():
            self.database.executemany(
                "INSERT OR REPLACE INTO vectors (encoder, key, kind, data, checksum) "
                "VALUES (?, ?, ?, ?, ?)",
                rows,
            )

    def digests(self, stamps: Mapping[str, Stamp]) -> dict[str, bytes]:
        """Place -> SHA-256 of the content, of images that have the stamp they had when read."""
        known = {}
        for some in _chunks(stamps):
            by_name = {os.fsencode(place): place for place in some}
            marks = ",".join("?" * len(some))
            rows = self.database.execute(
                f"SELECT path, size, modified, digest FROM files WHERE path IN ({marks})",
                tuple(by_name),
            )
            for name, size, modified, digest in rows:
                if stamps[by_name[name]] == (size, modified):
                    known[by_name[name]] = digest
        return known

    def remember(self, read: Mapping[str, tuple[Stamp, bytes]]) -> None:
        """Keep the digests of images by place, but of those modified a moment ago or who knows."""
        settled = time.time_ns() - SETTLED
        rows = [
            (os.fsencode(place), *stamp, digest)
            for place, (stamp, digest) in read.items()
            if 0 < stamp.modified < settled
        ]
        if rows:
            with self.transaction():
                self.database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)

    def use(self, store: Path, encoder: int, keys: Iterable[bytes]) -> None:
        """Note that a store was made of these, and of nothing else."""
        name = self._name(store)
        with self.transaction():
            self.database.execute("DELETE FROM uses WHERE store = ?", (name,))
            self.database.executemany(
                "INSERT OR IGNORE INTO uses VALUES (?, ?, ?)",
                ((name, encoder, key) for key in keys),
            )

    def found_at(self, store: Path, place: str) -> None:
        """Note which folder, table or shards a store's images are of."""
        with self.transaction():
            self.database.execute(
                "INSERT OR REPLACE INTO places VALUES (?, ?)", (self._name(store), place)
            )

    def place(self, store: Path) -> str | None:
        """The folder, table or shards that a store's images are of, if that was noted."""
        asked = "SELECT place FROM places WHERE store = ?"
        found = self.database.execute(asked, (self._name(store),)).fetchone()
        return None if found is None else str(found[0])

    def _name(self, store: Path) -> str:
        """A store's path as the bank keeps it: both may be moved together."""
        return os.path.relpath(store.absolute(), self.path.parent.absolute())


def _checksum(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, key=key).digest()


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(items)
    while some := list(islice(remaining, AT_ONCE)):
        yield some

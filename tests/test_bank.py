import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache.datasets.reader import Stamp
from cache.errors import UserError
from cache.extraction.bank import Bank
from cache.extraction.bank_upkeep import kept, prune, shrink

KEYS = [bytes([i]) * 32 for i in range(6)]
VECTORS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a bank with two vectors of one encoder."""
    path = tmp_path / "bank.sqlite"
    with Bank.opened(path) as bank:
        bank.put(bank.encoder("m", {"weights": "w"}), "image", KEYS[:2], VECTORS[:2])
    return path


def found(path: Path) -> list[int]:
    """Which of the keys are kept, each with its vector."""
    with Bank.opened(path) as bank:
        got = bank.get(bank.encoder("m", {"weights": "w"}), KEYS)
    for key, vector in got.items():
        assert vector.tobytes() == VECTORS[KEYS.index(key)].tobytes()
    return sorted(KEYS.index(key) for key in got)


def test_a_vector_belongs_to_its_key_and_to_all_that_made_it(path: Path) -> None:
    assert found(path) == [0, 1]
    with Bank.opened(path) as bank:
        other = bank.encoder("m", {"weights": "x"})
        assert bank.get(other, KEYS) == {}
        bank.put(other, "image", KEYS[:1], VECTORS[5:])
        (vector,) = bank.get(other, KEYS).values()
        assert vector.tobytes() == VECTORS[5].tobytes()
        assert bank.encoder("by another name", {"weights": "x"}) == other
    assert found(path) == [0, 1]


def forked(work: Callable[[], None]) -> int:
    """Do it in a process of its own; the exit code, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BaseException):
        work()
        os._exit(0)
    os._exit(1)


def test_a_writer_killed_within_a_write_leaves_what_was_there(path: Path) -> None:
    def killed_when_half_is_written() -> None:
        with Bank.opened(path) as bank, bank.transaction():
            # More than SQLite keeps in memory, so that some of it is in the file already.
            rows = ((9, os.urandom(32), "image", bytes(40_000), b"") for _ in range(200))
            bank.database.executemany(
                "INSERT INTO vectors (encoder, key, kind, data, checksum) VALUES (?, ?, ?, ?, ?)",
                rows,
            )
            os.kill(os.getpid(), signal.SIGKILL)

    before = path.stat().st_size
    assert forked(killed_when_half_is_written) == -signal.SIGKILL
    assert path.stat().st_size > before
    assert found(path) == [0, 1]
    with Bank.opened(path) as bank:
        assert [one.images for one in kept(bank)] == [2]


def test_two_writers_wait_for_one_another(path: Path) -> None:
    def other() -> None:
        with Bank.opened(path) as bank:
            for i in range(40):
                bank.put(bank.encoder("m", {"weights": "w"}), "image", KEYS[2:4], VECTORS[2:4] * i)
            bank.put(bank.encoder("m", {"weights": "w"}), "image", KEYS[2:4], VECTORS[2:4])

    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            other()
            os._exit(0)
        os._exit(1)
    with Bank.opened(path) as bank:
        for _ in range(40):
            bank.put(bank.encoder("m", {"weights": "w"}), "image", KEYS[4:], VECTORS[4:])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert found(path) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("column", ["data", "checksum", "key"])
def test_what_was_damaged_is_not_there(path: Path, column: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        (value,) = database.execute(f"SELECT {column} FROM vectors WHERE id = 1").fetchone()
        changed = bytes([value[0] ^ 1]) + value[1:]
        database.execute(f"UPDATE vectors SET {column} = ? WHERE id = 1", (changed,))
    with Bank.opened(path) as bank:
        assert list(bank.get(bank.encoder("m", {"weights": "w"}), [*KEYS, changed])) == KEYS[1:2]


def test_a_file_that_is_no_bank_is_one_line(path: Path) -> None:
    path.write_bytes(b"no bank at all" * 100)
    with (
        pytest.raises(UserError, match=rf"{path} is damaged \(.*\); remove it and run"),
        Bank.opened(path),
    ):
        pass


def test_a_bank_of_a_later_version_is_refused(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(UserError, match="later version of fewshot"), Bank.opened(path):
        pass


def test_a_digest_counts_for_the_size_and_time_it_was_read_at(tmp_path: Path) -> None:
    a, b, young = (str(tmp_path / name) for name in ("a", "b\udcff", "young"))
    stamp = Stamp(3, 10**9)
    with Bank.opened(tmp_path / "bank.sqlite") as bank:
        bank.remember({a: (stamp, b"1"), b: (stamp, b"2")})
        now = Stamp(3, time.time_ns() - 10**9)
        bank.remember({young: (now, b"3")})
        assert bank.digests({a: stamp, b: stamp}) == {a: b"1", b: b"2"}
        assert bank.digests({a: Stamp(4, 10**9), b: Stamp(3, 10**9 + 1)}) == {}
        assert bank.digests({young: now}) == {}


def test_pruning_keeps_what_stores_use_that_are_there(path: Path, tmp_path: Path) -> None:
    there, gone = tmp_path / "d" / "m.h5", tmp_path / "d" / "n.h5"
    there.parent.mkdir()
    there.touch()
    with Bank.opened(path) as bank:
        m, n = bank.encoder("m", {"weights": "w"}), bank.encoder("n", {})
        bank.put(m, "image", KEYS, VECTORS)
        bank.put(n, "prompt", KEYS[:1], VECTORS[:1])
        bank.use(there, m, KEYS[:4])
        bank.use(there, m, KEYS[1:3])
        bank.use(gone, m, KEYS[4:])
        bank.use(gone, n, KEYS[:1])
        assert [one[:3] for one in kept(bank)] == [("m", 6, 0), ("n", 0, 1)]
        assert prune(bank) == 5
        assert [one[:3] for one in kept(bank)] == [("m", 2, 0)]
    assert found(path) == [1, 2]


def test_shrinking_removes_what_no_store_uses_first_and_then_the_oldest(
    path: Path, tmp_path: Path
) -> None:
    with Bank.opened(path) as bank:
        m = bank.encoder("m", {"weights": "w"})
        bank.put(m, "image", KEYS, VECTORS)
        bank.use(tmp_path / "s.h5", m, [KEYS[i] for i in (0, 1, 3)])
        (one,) = kept(bank)
        each = one.size // 6
        assert shrink(bank, 6 * each) == 0
        assert shrink(bank, 4 * each) == 2
        assert list(bank.get(m, KEYS)) == [KEYS[i] for i in (0, 1, 3, 5)]
        assert shrink(bank, 3 * each - 1) == 2
        assert list(bank.get(m, KEYS)) == [KEYS[i] for i in (1, 3)]

"""How large a bank is, and how it is made smaller."""

import os
from typing import NamedTuple

from cache.extraction.bank import Bank

_BYTES = "LENGTH(data) + LENGTH(vectors.key) + LENGTH(checksum)"


class Kept(NamedTuple):
    """The contents of a bank for one model: images, each of their crops counted, and prompts."""

    model: str
    images: int
    prompts: int
    size: int


def kept(bank: Bank) -> list[Kept]:
    """The contents per model, by name; sizes in bytes."""
    rows = bank.database.execute(
        f"SELECT name, SUM(kind = 'image'), SUM(kind = 'prompt'), SUM({_BYTES}) "
        "FROM vectors JOIN encoders ON encoders.id = encoder GROUP BY name ORDER BY name"
    )
    return [Kept(*row) for row in rows]


def prune(bank: Bank) -> int:
    """Remove the features that no store uses; their number. Files that are gone are forgotten.

    A store that was removed uses nothing. One that was made without the bank is not known to it.
    """
    database, folder = bank.database, bank.path.parent
    stores = database.execute("SELECT DISTINCT store FROM uses").fetchall()
    files = database.execute("SELECT path FROM files").fetchall()
    with bank.transaction():
        database.executemany(
            "DELETE FROM uses WHERE store = ?",
            [(name,) for (name,) in stores if not (folder / name).exists()],
        )
        database.executemany(
            "DELETE FROM files WHERE path = ?",
            [(path,) for (path,) in files if not os.path.exists(path)],  # noqa: PTH110  # bytes
        )
        removed = database.execute(
            "DELETE FROM vectors WHERE (encoder, key) NOT IN (SELECT encoder, key FROM uses)"
        ).rowcount
        _forget_empty(bank)
    database.execute("VACUUM")
    return removed


def shrink(bank: Bank, size: int) -> int:
    """Remove features until at most `size` bytes of them are left; the number removed.

    Those that no store uses go first, and of these and of the others the oldest.
    """
    database = bank.database
    total = sum(one.size for one in kept(bank))
    rows = database.execute(
        f"SELECT vectors.id, {_BYTES}, EXISTS (SELECT 1 FROM uses WHERE "
        "uses.encoder = vectors.encoder AND uses.key = vectors.key) AS used "
        "FROM vectors ORDER BY used, vectors.id"
    )
    removed = []
    for number, length, _ in rows:
        if total <= size:
            break
        removed.append((number,))
        total -= length
    rows.close()
    with bank.transaction():
        database.executemany("DELETE FROM vectors WHERE id = ?", removed)
        _forget_empty(bank)
    database.execute("VACUUM")
    return len(removed)


def _forget_empty(bank: Bank) -> None:
    bank.database.execute(
        "DELETE FROM encoders WHERE id NOT IN (SELECT DISTINCT encoder FROM vectors)"
    )

"""Bytes at an address: a path, or a URL that fsspec knows, such as s3://, gs:// and https://.

Remote requests are repeated when they fail, and a process has a limited number at a time.
"""

import errno
import functools
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, TypeVar

from cache.errors import UserError, printable
from cache.files.atomic import replacing
from cache.files.stamp import Stamp

T = TypeVar("T")
CONNECTIONS = 32  # remote requests at a time, of all threads of a process
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each repetition of a remote request
_FINAL = (FileNotFoundError, IsADirectoryError, UserError)
_connections = threading.BoundedSemaphore(CONNECTIONS)


def is_remote(address: str) -> bool:
    """True for a URL, False for a path."""
    return "://" in address


def address_of(path: Path | str) -> str:
    """The address that a path stands for: `Path` takes one of the slashes behind a colon.

    The home folder takes the place of `~`.
    """
    if str(path).startswith("~"):
        return str(Path(path).expanduser())
    return re.sub(r"^([a-z][a-z0-9+.-]+:)/(?!/)", r"\1//", str(path))


def beside(address: str, name: str) -> str:
    """The address of what lies in the same folder under a name such as `parts/a.h5`."""
    if not is_remote(address):
        return str(Path(address).parent / name)
    return f"{address.rpartition('/')[0]}/{name}"


def expand(pattern: str) -> list[str]:
    """The addresses that a pattern stands for: {000..012} counts, {a,b} lists, `*` looks.

    Raises:
        UserError: Braces are not of these forms, or nothing fits a `*`.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    if any(brace in text for text in parts[::2] for brace in "{}"):
        raise UserError(f"braces in {pattern} must be {{000..012}} or {{a,b}}, not one in another")
    choices = [[part] if i % 2 == 0 else _choices(part, pattern) for i, part in enumerate(parts)]
    found = []
    for address in map("".join, itertools.product(*choices)):
        fitting = matching(address) if "*" in address else [address]
        if not fitting:
            raise UserError(f"nothing fits {address}; give shards that are there")
        found += fitting
    return found


def read(address: str, start: int = 0, size: int | None = None) -> bytes:
    """A part of what lies at an address, or all of it from `start` on.

    Raises:
        OSError: It is not there, or ends before.
        UserError: It cannot be reached.
    """
    if not is_remote(address):
        with Path(address).open("rb") as file:
            file.seek(start)
            found = file.read() if size is None else file.read(size)
    else:
        end = None if size is None else start + size
        found = _patiently(
            lambda system, path: bytes(system.cat_file(path, start=start, end=end)), address
        )
    if size is not None and len(found) < size:
        raise OSError(f"{address} ends before byte {start + size:,}")
    return found


def stamp(address: str) -> Stamp:
    """The size, and a number that changes when what lies there changes: of a file, its time.

    Raises:
        OSError: There is nothing.
        UserError: It cannot be reached.
    """
    if not is_remote(address):
        return Stamp.of(Path(address))

    def ask(system: Any, path: str) -> Stamp:
        # 60 bits, so that it is earlier than any clock shows, as a file's time is.
        return Stamp(int(system.size(path)), int(str(system.ukey(path))[:15], 16))

    return _patiently(ask, address)


def exists(address: str) -> bool:
    """True if something lies at an address."""
    if not is_remote(address):
        return Path(address).exists()
    return bool(_patiently(lambda system, path: system.exists(path), address))


def through(address: str, use: Callable[[IO[bytes]], T], ahead: int = 2**22) -> T:
    """The result of a function of the open file at an address, called again where reading fails.

    Args:
        address: Where it lies.
        use: The function.
        ahead: Bytes that each remote read fetches: many from the start to the end, few here and
            there.

    Raises:
        OSError: It is not there.
        UserError: It cannot be reached.
    """
    if not is_remote(address):
        with Path(address).open("rb") as file:
            return use(file)

    def opened(system: Any, path: str) -> T:
        with system.open(path, "rb", block_size=ahead) as file:
            return use(file)

    return _patiently(opened, address)


def write(address: str, content: bytes) -> None:
    """Put bytes at an address, whole or not at all.

    Raises:
        OSError: The file cannot be written.
        UserError: The address cannot be reached, or is only for reading.
    """
    if not is_remote(address):
        with replacing(Path(address)) as temporary:
            temporary.write_bytes(content)
        return
    _patiently(lambda system, path: system.pipe_file(path, content), address)


def matching(address: str) -> list[str]:
    """The addresses that fit one with `*` in it, sorted; none is no error.

    Raises:
        UserError: They cannot be reached.
    """
    if not is_remote(address):
        path = Path(address)
        root = Path(path.anchor)
        return sorted(str(found) for found in root.glob(str(path.relative_to(root))))
    found = _patiently(
        lambda system, path: list(map(system.unstrip_protocol, system.glob(path))), address
    )
    return sorted(map(str, found))


def below(folder: str, ending: str, folders: Iterable[str]) -> list[str]:
    """The files with an ending in a folder, else those in some folders in it; sorted."""
    for places in ([folder], [f"{folder}/{name}" for name in folders]):
        found = [file for place in places for file in matching(f"{place}/*{ending}")]
        if found:
            return found
    return []


def _choices(braces: str, pattern: str) -> list[str]:
    if counted := re.fullmatch(r"(\d+)\.\.(\d+)", braces):
        first, last = counted.groups()
        if int(first) <= int(last):
            return [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    elif "," in braces:
        return braces.split(",")
    raise UserError(
        f"braces in {pattern} must be {{000..012}} or {{a,b}}, got {{{braces}}}; write the first "
        "number before the last"
    )


def _patiently(use: Callable[[Any, str], T], address: str) -> T:
    """The result of a function of a file system and an address in it, tried again where it fails.

    Raises:
        OSError: There is nothing.
        UserError: Access is denied, or it failed every time.
    """
    for wait in (*WAITS, None):
        try:
            with _connections:
                return use(_system(address), address)
        except _FINAL:
            raise
        except Exception as error:  # each file system raises its own
            why = printable(" ".join((str(error) or type(error).__name__).split()))
            if _is_denied(error):
                raise UserError(
                    f"access to {address} is denied ({why:.150}); check the credentials and the "
                    "region of your environment, and that they may read, list and write there"
                ) from error
            if wait is None:  # no fault of the image that is read: nothing is to be left out
                raise UserError(
                    f"cannot reach {address} ({why:.150}), {len(WAITS) + 1} times; check the "
                    "network, then run the same command again"
                ) from error
        time.sleep(wait)
    raise AssertionError("unreachable")


def _is_denied(error: Exception) -> bool:
    """True where another try would end alike, for want of a right or of credentials."""
    return (
        isinstance(error, PermissionError | NotImplementedError)
        or "Credentials" in type(error).__name__  # of botocore and of google.auth
        or getattr(error, "status", None) in (401, 403, 405)  # of HTTP
        or (isinstance(error, OSError) and error.errno == errno.EINVAL)  # as an expired token
    )


def _system(address: str) -> Any:
    """The file system of an address."""
    try:
        return file_system("/".join(address.split("/", 3)[:3]))
    except ImportError as error:  # says which package to install
        raise UserError(f"cannot read {address}: {error}") from error
    except ValueError as error:
        raise UserError(f"cannot read {address}: {error}; give a path or a URL") from error


@functools.cache  # fsspec would make one, and connect, for each thread
def file_system(root: str) -> Any:
    """The file system of all addresses that begin with this one, such as `s3://bucket`."""
    import fsspec  # a tenth of a second, and local files do without

    # Listings that are kept would hide that a shard was replaced.
    return fsspec.core.url_to_fs(root, use_listings_cache=False)[0]

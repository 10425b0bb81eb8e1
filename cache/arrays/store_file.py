"""An HDF5 file of a store that appears whole or not at all, with a digest of each array in it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache.arrays.hdf5 import datasets, digest
from cache.files.atomic import replacing
from cache.files.disk import DiskFile


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[tuple[Any, DiskFile, dict[str, Any]]]:
    """An open HDF5 file, the disk under it, and its attributes, which are written last.

    No date goes into the file, so equal content gives equal bytes. Where the block raises, Ctrl-C
    included, `path` is as it was and nothing else is left.

    Raises:
        UserError: The disk is full.
    """
    with replacing(path) as temporary, DiskFile(temporary, "w+") as disk:
        try:
            # This version of the format guards all but the features with checksums of its own.
            with h5py.File(disk, "w", libver=("v110", "v110")) as file:
                attributes: dict[str, Any] = {}
                yield file, disk, attributes
                file.flush()
                for dataset in datasets(file):
                    dataset.attrs["sha256"] = np.bytes_(digest(temporary, dataset))
                for name, value in attributes.items():
                    file.attrs[name] = value
        finally:
            disk.report(path)

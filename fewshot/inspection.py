"""Look at a file that fewshot wrote: a store, an adapter, or synthesized features."""

from pathlib import Path

from cache.errors import UserError
from fewshot.adapters.header import is_adapter
from fewshot.adapters.hub import adapter_file
from fewshot.synthesis.kept_files import SUFFIX, require_whole
from fewshot.synthesis.kept_files import describe as describe_kept


def inspect(path: Path | str) -> str:
    """Describe the contents of a file, and how it was made.

    Raises:
        UserError: It cannot be read.
    """
    path = adapter_file(path)
    if is_adapter(path):
        from fewshot.adapters.adapter import load_adapter
        from fewshot.adapters.description import describe

        return describe(load_adapter(path))
    if path.suffix == SUFFIX:
        return describe_kept(path)
    from cache.store_check import inspect as describe_store

    return describe_store(path)


def verify(path: Path | str) -> str:
    """Raise unless a file is as it was written, as far as its digests reach.

    Returns:
        `whole and unchanged`, or what the digest of an adapter of an older format leaves open.

    Raises:
        UserError: It is damaged, or cannot be read.
    """
    path = adapter_file(path)
    if is_adapter(path):
        from fewshot.adapters.adapter import load_adapter
        from fewshot.adapters.description import verified

        return verified(load_adapter(path))  # reading compares, whoever asks
    if path.suffix == SUFFIX:
        require_whole(path)
        return "whole and unchanged"
    from cache.store import FeatureStore
    from cache.store_check import verify as problems_of

    address = FeatureStore.open(path).contents.address  # names what is wrong with no store
    problems = problems_of(path)
    if problems:
        raise UserError(f"{address} is damaged: {'; '.join(problems)}; extract it again")
    return "whole and unchanged"

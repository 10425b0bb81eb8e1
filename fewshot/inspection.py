"""Look at a file that fewshot wrote, a store or an adapter; the ending says which."""

from pathlib import Path

from cache.errors import UserError


def inspect(path: Path | str) -> str:
    """Describe the contents of a store or an adapter, and how it was made.

    Raises:
        UserError: It cannot be read.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from fewshot.adapters.adapter import load_adapter
        from fewshot.adapters.description import describe

        return describe(load_adapter(path))
    from cache.store_check import inspect as describe_store

    return describe_store(path)


def verify(path: Path | str) -> None:
    """Raise unless all of a store or an adapter is as it was written.

    Raises:
        UserError: It is damaged, or cannot be read.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from fewshot.adapters.adapter import load_adapter

        load_adapter(path)  # compares digests, whoever asks
        return
    from cache.store import FeatureStore
    from cache.store_check import verify as problems_of

    FeatureStore.open(path)  # names what is wrong with a file that is no store
    problems = problems_of(path)
    if problems:
        raise UserError(f"{path} is damaged: {'; '.join(problems)}; extract it again")

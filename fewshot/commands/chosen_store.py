"""The store that --dataset and --model mean."""

from pathlib import Path
from typing import TYPE_CHECKING

from fewshot.commands.terminal import say

if TYPE_CHECKING:
    from cache.store import FeatureStore


def chosen_store(root: Path | None, dataset: str | None, model: str | None) -> "FeatureStore":
    """The store or the pair that is meant; where that takes a choice, says which."""
    from cache.location import default_root
    from cache.pair import found

    opened, chosen = found(root or default_root(), dataset, model)
    if chosen or dataset is None:
        say(f"using {opened.path}")
    return opened

"""open_clip's architectures, read off its files: to import it takes seconds."""

import importlib.util
from pathlib import Path

from cache.errors import UserError, unknown
from cache.location import model_name, weights_file


def require_architecture(model: str) -> None:
    """Raise unless open_clip has the architecture of a model, where its name is one of open_clip's.

    Nothing is said of the weights, nor where open_clip is not installed.

    Raises:
        UserError: It has no such architecture, or the name says nothing of weights.
    """
    name = model_name(model)
    arch, file = weights_file(name)
    known = _architectures()
    if name == "tiny" or ":" in arch or not known:
        return
    if file is None:
        if arch.replace("/", "-") in known:
            raise UserError(f"{name} names no weights; say {name}/TAG, such as ViT-B-16/openai")
        arch = arch.rpartition("/")[0] or arch
    if arch.replace("/", "-") not in known:
        raise unknown("model", arch, ["tiny", *known])


def _architectures() -> frozenset[str]:
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        return frozenset()
    return frozenset(path.stem for path in Path(package.origin).parent.glob("model_configs/*.json"))

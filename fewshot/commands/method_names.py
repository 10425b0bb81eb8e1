"""Which command runs a method: `fit` on stored features, `train` through the model."""

from typing import Literal

from cache.errors import UserError, unknown

LIVE = "live-"  # begins the name of a method through the model that has a twin on features


def require_method(name: str, command: Literal["fit", "train"]) -> str:
    """The method's name, which `train` takes without the word `live-` as well.

    Raises:
        UserError: The other command does, or there is no such method.
    """
    from fewshot.methods import METHODS

    if command == "fit" and name in METHODS:
        return name
    from fewshot.endtoend.methods import METHODS as TRAINED

    if command == "train" and (name in TRAINED or LIVE + name in TRAINED):
        return name if name in TRAINED else LIVE + name
    if name in TRAINED:
        raise UserError(f"{name} is trained through the model; run: fewshot train {name}")
    if name in METHODS:
        raise UserError(f"{name} is fitted on stored features; run: fewshot fit {name}")
    raise unknown(
        "method" if command == "fit" else "end-to-end method",
        name,
        METHODS if command == "fit" else TRAINED,
        see="fewshot methods",
    )

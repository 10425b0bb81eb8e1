"""Which command runs a method: `fit` on stored features, `train` through the model."""

from typing import Literal

from cache.errors import UserError, unknown


def require_method(name: str, command: Literal["fit", "train"]) -> None:
    """Raise unless this command runs the method.

    Raises:
        UserError: The other command does, or there is no such method.
    """
    from fewshot.methods import METHODS

    if command == "fit" and name in METHODS:
        return
    from fewshot.endtoend.methods import METHODS as TRAINED

    if name in TRAINED and command == "fit":
        raise UserError(f"{name} is trained through the model; run: fewshot train {name}")
    if name in METHODS and command == "train":
        raise UserError(f"{name} is fitted on stored features; run: fewshot fit {name}")
    known = METHODS if command == "fit" else TRAINED
    if name not in known:
        raise unknown(
            "method" if command == "fit" else "end-to-end method",
            name,
            known,
            see="fewshot methods",
        )

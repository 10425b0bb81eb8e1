"""The model and the preprocessing that an adapter was made with, and no others."""

from collections.abc import Mapping
from typing import Any

from cache.errors import UserError
from cache.images.preprocessing import Preprocess
from cache.models.encoder import Encoder


def require_model(recorded: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise unless a model is the one that an adapter was made with.

    The weights decide, where the adapter knows them: a model may have moved.

    Args:
        recorded: The adapter's record of the model.
        identity: That of the model at hand.

    Raises:
        UserError: It is another; says both identities.
    """
    keys = ["weights"] if recorded.get("weights") else [k for k in ("dim",) if k in recorded]
    have = {key: identity.get(key) for key in keys}
    want = {key: recorded[key] for key in keys}
    if have != want:
        raise UserError(
            f"this adapter was made with {_identity(recorded)}, and this is "
            f"{_identity(identity)}: another model's features mean something else; "
            "give --model the one it was made with, or fit again"
        )


def preprocessing(recorded: Mapping[str, Any], encoder: Encoder) -> Preprocess:
    """From image to pixels as for the adapter's training images; the model's own if unknown.

    Raises:
        UserError: It makes images of a size that the model does not take.
    """
    known = {k: v for k, v in recorded.items() if k != "exif"}
    if not known:
        return encoder.preprocess
    known |= {key: tuple(known[key]) for key in ("mean", "std")}
    found = Preprocess(**known)
    if found.size != encoder.preprocess.size:
        raise UserError(
            f"the adapter's preprocessing makes images of {found.size} pixels, and the model takes "
            f"{encoder.preprocess.size}; fit it again"
        )
    return found


def _identity(model: Mapping[str, Any]) -> str:
    weights = str(model.get("weights") or "unknown")
    return f"{model['name']} (weights {weights[:12]}, D = {model.get('dim', 'unknown')})"

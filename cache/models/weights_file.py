"""Weights from a file on disk, put into a model of the architecture that they were saved from."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cache.errors import UserError, printable

NESTED = ("state_dict", "model")  # keys under which training scripts keep the weights
SEEN = ("mean", "std", "interpolation", "resize_mode")  # of the preprocessing of weights
FORMS = "expected a state dict that torch.save wrote, or a .safetensors file"


def build(arch: str, file: Path) -> Any:
    """open_clip's model of an architecture, with the weights of a file.

    Raises:
        UserError: No such file, or no weights of that architecture in it.
    """
    import open_clip
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    weights = read_weights(file)
    model: Any = open_clip.create_model(arch, pretrained_hf=False)
    put_weights(
        model, weights, f"{arch}@{file}",
        [lambda found: convert_state_dict(model, found), convert_to_custom_text_state_dict],
    )  # fmt: skip
    model.visual.preprocess_cfg |= published_preprocessing(arch)
    return model


def published_preprocessing(arch: str) -> dict[str, Any]:
    """The preprocessing on which all published weights of an architecture agree, as they name it.

    open_clip has it for weights alone, and SigLIP's is not CLIP's.
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    published = [get_pretrained_cfg(arch, tag) for tag in list_pretrained_tags_by_model(arch)]
    said = {key: [one.get(key) for one in published] for key in SEEN}
    return {
        key: values[0]
        for key, values in said.items()
        if values and values[0] is not None and values.count(values[0]) == len(values)
    }


def read_weights(file: Path) -> dict[str, Tensor]:
    """Name -> tensor, as a training script saved them; nothing in the file is run.

    The weights may lie under `state_dict` or `model`, and every name may begin with `module.`, as
    `DataParallel` has it.

    Raises:
        UserError: No such file, or no weights in it.
    """
    if not file.is_file():
        raise UserError(f"no weights in {file}: there is no such file; give ARCH@PATH/TO/FILE.pt")
    try:
        found = _read(file)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = printable((str(error).strip() or repr(error)).splitlines()[0])
        raise UserError(f"cannot read weights from {file}: {reason:.160}; {FORMS}") from error
    except Exception as error:  # unpickling's words are of opcodes, or advice to run the file
        raise UserError(
            f"cannot read weights from {file}: it is no such file, or holds more than tensors; "
            f"{FORMS}"
        ) from error
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(map(_is_weight, found.items())):
        raise UserError(f"{file} holds no weights by name; {FORMS}")
    if all(name.startswith("module.") for name in found):
        return {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return dict(found)


def put_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    conversions: Sequence[Callable[[dict[str, Tensor]], dict[str, Tensor]]] = (),
) -> None:
    """Load the weights into the model; nothing is left out, resized or left at random.

    Args:
        model: Of the architecture.
        weights: Name -> tensor.
        source: `ARCH@FILE`, for the error.
        conversions: Spellings of other programs into the model's, tried one after another where
            the names do not fit.

    Raises:
        UserError: The weights are of another architecture; says the first name that differs.
    """
    expected = model.state_dict()
    first = _difference(expected, weights)
    for convert in conversions:
        if _difference(expected, weights):
            weights = convert(dict(weights))
    if _difference(expected, weights):
        arch, _, file = source.partition("@")
        raise UserError(f"{file} holds no weights of {arch}: {first}; name the architecture of it")
    model.load_state_dict(weights)


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _is_weight(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The first name that differs, with both shapes, the model's names first; empty if none."""
    for name in [*expected, *(n for n in found if n not in expected)]:
        shapes = [tuple(w[name].shape) if name in w else "not there" for w in (found, expected)]
        if shapes[0] != shapes[1]:
            return f"{printable(name)} is {shapes[0]} in the file and {shapes[1]} in the model"
    return ""

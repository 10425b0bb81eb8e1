"""A saved adapter: what a method learned, in one file with all that using it takes.

The file is safetensors: the tensors, and in its header JSON under the key "fewshot". Nothing in it
is ever executed. The model's own weights are not in it; their digest is, and no others will do.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache.atomic import replacing
from cache.errors import UserError
from fewshot.model_selection.calibration import Calibration
from fewshot.sampling import shots_name

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Adapter:
    """The parameters that a method learned, with all that using them needs.

    Attributes:
        method: Its name.
        settings: Its hyper-parameters.
        model: What is recorded of the model: name, arch, tag, weights digest, quick_gelu,
            logit_scale, dim, image_size; imports lack what nobody knew.
        preprocessing: From an image to the model's input, `exif` (whether images are turned
            upright) included; empty where nobody knew.
        precision: What the model computed in: "fp32", "bf16" or "fp16".
        classnames: C names by class id.
        prompts: The sentences that made each class's text, by class id; empty without text.
        templates: The dataset's templates, which end-to-end methods make their prompts of.
        training: What it was learned from: dataset, shots, seed, tuning, counts, versions.
        calibration: How sure it may be.
        classifier: The classifier on features as `parts` has it; None of an end-to-end method.
        tensors: Its tensors, or what an end-to-end method trained, by name.
    """

    method: str
    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    precision: str
    classnames: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    training: Mapping[str, Any]
    calibration: Calibration
    classifier: Mapping[str, Any] | None
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def model_name(self) -> str:
        """The model's name, such as `ViT-B-16/openai`."""
        return str(self.model["name"])

    def summary(self) -> str:
        """One line: what it is, and how good as far as is known."""
        shots = self.training.get("shots")
        known = self.calibration
        learned = shots_name(int(shots)) if shots else "no labels"
        if "shots" not in self.training:
            learned = "nobody knows how many shots"
        line = f"{self.method} on {self.model_name}, {len(self.classnames)} classes, {learned}"
        if known.accuracy is None or known.interval is None:
            return f"{line}; not calibrated, for want of labeled images to judge by"
        low, high = (f"{100 * end:.1f}" for end in known.interval)
        where = {"cv": "cross-validated", "val": "on validation images"}[known.source]
        return f"{line}; {100 * known.accuracy:.1f} % right {where} ({low} to {high})"

    def card(self) -> dict[str, Any]:
        """Everything but the tensors, as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tensors"}
        values["calibration"] = asdict(self.calibration)
        plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
        return plain

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: The path does not end in .safetensors.
        """
        require_suffix(path)
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in self.tensors.items()}
        header = {"format": FORMAT, "digest": _digest(tensors), **self.card()}
        content = save(tensors, {"fewshot": json.dumps(header, ensure_ascii=False)})
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def load_adapter(path: Path | str) -> Adapter:
    """The adapter in a file.

    Raises:
        UserError: There is none, it is damaged, or a later version wrote it.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read an adapter from {path}: {error.strerror}; `fewshot fit … --save` and "
            "`fewshot auto` write one"
        ) from None
    header = _header(path, content)
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} is of adapter format {header.get('format')}, and this version reads {FORMAT}; "
            "update fewshot"
        )
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); copy or fit it again") from None
    if _digest(tensors) != header.get("digest"):
        raise UserError(f"{path} is damaged: its tensors are not those written; copy it again")
    try:
        return Adapter(
            method=header["method"],
            settings=header["settings"],
            model=header["model"],
            preprocessing=header["preprocessing"],
            precision=header["precision"],
            classnames=tuple(header["classnames"]),
            prompts=tuple(map(tuple, header["prompts"])),
            templates=tuple(header["templates"]),
            training=header["training"],
            calibration=_calibration(header["calibration"]),
            classifier=header["classifier"],
            tensors=tensors,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: its header lacks {error}; copy it again") from None


def is_adapter(path: Path) -> bool:
    """True if a file calls itself an adapter; its content is not checked."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        _header(path, path.read_bytes())
    except (UserError, OSError):
        return False
    return True


def require_suffix(path: Path) -> None:
    """Raise unless an adapter can be saved under this name.

    Raises:
        UserError: It does not end as such files do, or is a folder.
    """
    if path.suffix != ".safetensors" or path.is_dir():
        raise UserError(f"an adapter is a file that ends in .safetensors; got {path}")


def _header(path: Path, content: bytes) -> dict[str, Any]:
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        found: dict[str, Any] = json.loads(header["__metadata__"]["fewshot"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is no adapter of this program; `fewshot fit … --save` and `fewshot auto` "
            "write one"
        ) from None
    return found


def _calibration(values: Mapping[str, Any]) -> Calibration:
    interval: Sequence[float] | None = values["interval"]
    return Calibration(**{**values, "interval": None if interval is None else tuple(interval)})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

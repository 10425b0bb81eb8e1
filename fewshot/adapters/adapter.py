"""An adapter: what a method learned, with all that using it takes but the model's own weights.

Their digest is in it, and no others will do.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from cache.errors import UserError, count
from fewshot.adapters.adapter_file import FORMAT, read_adapter, write_adapter
from fewshot.adapters.card import UNKNOWN, require_card, require_tensors
from fewshot.adapters.first_model import FirstModel
from fewshot.adapters.header import SUFFIX
from fewshot.adapters.hub import adapter_file
from fewshot.adapters.open_set_entry import opened_open_set, plain_open_set, split_tensors
from fewshot.label_rule import LabelRule
from fewshot.model_selection.calibration import Calibration
from fewshot.model_selection.unknown_classes import OpenSet
from fewshot.sampling import shots_name


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
        held_out: For prediction sets, by class: the probabilities of it that held-out images of it
            got, ascending; empty where no image was held out.
        open_set: The score that finds images of no class; None where it could not be judged.
        label_rule: From logits to the labels of an image that may have several; None where it has
            one.
        beside: The first model of a pair, of which `model` is the second; None of one model.
        classifier: The classifier on features as `parts` has it; None of an end-to-end method.
        tensors: Its tensors, or what an end-to-end method trained, by name.
        format: Of the file that it was read from.
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
    held_out: tuple[tuple[float, ...], ...] = field(default=(), repr=False)
    open_set: OpenSet | None = field(default=None, repr=False)
    label_rule: LabelRule | None = field(default=None, repr=False)
    beside: FirstModel | None = None
    format: int = FORMAT

    @property
    def model_name(self) -> str:
        """The model's name, such as `ViT-B-16/openai`; of a pair, `FIRST+SECOND`."""
        first = "" if self.beside is None else f"{self.beside.model['name']}+"
        return f"{first}{self.model['name']}"

    def summary(self) -> str:
        """One line: what it is, and how good as far as is known."""
        shots = self.training.get("shots")
        known = self.calibration
        learned = shots_name(int(shots)) if shots else "no labels"
        if "shots" not in self.training:
            learned = "nobody knows how many shots"
        classes = count(len(self.classnames), "class", "classes")
        line = f"{self.method} on {self.model_name}, {classes}, {learned}"
        if self.label_rule is not None:
            reached = 100 * self.label_rule.mean_average_precision
            return f"{line}; several labels per image, mAP {reached:.1f} cross-validated"
        if known.accuracy is None or known.interval is None:
            return f"{line}; not calibrated, for want of labeled images to judge by"
        low, high = (f"{100 * end:.1f}" for end in known.interval)
        where = {"cv": "cross-validated", "val": "on validation images"}[known.source]
        return f"{line}; {100 * known.accuracy:.1f} % right {where} ({low} to {high})"

    def card(self) -> dict[str, Any]:
        """Everything but the tensors and the format, as plain values.

        `label_rule` is not among them where an image has one label: earlier versions have no such
        entry.
        """
        names = [field.name for field in fields(self) if field.name not in ("tensors", "format")]
        values = {name: getattr(self, name) for name in names}
        values["calibration"] = asdict(self.calibration)
        values["open_set"] = self.open_set and plain_open_set(self.open_set)[0]
        values["beside"] = self.beside and self.beside.card()
        values["label_rule"] = self.label_rule and asdict(self.label_rule)
        if self.label_rule is None:
            del values["label_rule"]
        plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
        return plain

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all, in the earliest format that has all of it.

        Raises:
            UserError: The path does not end in .safetensors.
        """
        require_suffix(path)
        tensors = dict(self.tensors)
        if self.open_set is not None:
            tensors |= plain_open_set(self.open_set)[1]
        write_adapter(path, self.card(), tensors)


def load_adapter(path: Path | str) -> Adapter:
    """Read an adapter, and check all of it: digest, card, tensors, and that they fit.

    Args:
        path: Its file, or `hf-hub:USER/NAME` of one on the Hugging Face hub.

    Raises:
        UserError: There is no such file, it is damaged, or a later version wrote it.
    """
    path = adapter_file(path)
    card, tensors = read_adapter(path)
    try:
        require_card(card)
        own, scores = split_tensors(tensors)
        require_tensors(card, own)
        open_set = opened_open_set(card.get("open_set"), scores)
    except UserError as error:
        raise UserError(f"{path}: {error}; copy or fit it again") from None
    return _adapter(card, own, open_set)


def require_suffix(path: Path) -> None:
    """Raise unless an adapter can be saved under this name.

    Raises:
        UserError: It does not end as such files do, or is a folder.
    """
    if path.suffix != SUFFIX or path.is_dir():
        raise UserError(f"an adapter is a file that ends in {SUFFIX}; got {path}")


def _adapter(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], open_set: OpenSet | None
) -> Adapter:
    known = card["calibration"]
    interval = known["interval"]
    return Adapter(
        method=card["method"],
        settings=card["settings"],
        model=card["model"],
        preprocessing={} if card["preprocessing"] in UNKNOWN else card["preprocessing"],
        precision=card["precision"],
        classnames=tuple(card["classnames"]),
        prompts=tuple(map(tuple, card["prompts"])),
        templates=tuple(card["templates"]),
        training=card["training"],
        calibration=Calibration(**{**known, "interval": interval and tuple(interval)}),
        classifier=card["classifier"],
        tensors=tensors,
        held_out=tuple(map(tuple, card.get("held_out", ()))),
        open_set=open_set,
        label_rule=_label_rule(card.get("label_rule")),
        beside=FirstModel(**card["beside"]) if card.get("beside") else None,
        format=card["format"],
    )


def _label_rule(entry: Mapping[str, Any] | None) -> LabelRule | None:
    if entry is None:
        return None
    lists = {name: tuple(entry[name]) for name in ("slopes", "shifts", "thresholds")}
    return LabelRule(**{**entry, **lists})

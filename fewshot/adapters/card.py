"""The card of an adapter: its form, and how the tensors fit it, checked before either is used."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.files.validation import problem
from fewshot.adapters.classifiers import put_together
from fewshot.parts.projected import PooledClassifier

# The preprocessing of features that were computed elsewhere.
UNKNOWN: tuple[Any, ...] = ("unknown", {})

Fraction = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[list[Fraction], Field(min_length=2, max_length=2)]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
WholeNumber = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(min_length=1)]


def require_card(card: Mapping[str, Any]) -> None:
    """Raise unless a card has the form of docs/adapter-format.md.

    Raises:
        UserError: It has not; names the place, what was expected there and what was found.
    """
    known = {**card, "preprocessing": None} if card.get("preprocessing") in UNKNOWN else card
    try:
        _Card.model_validate(known)
    except ValidationError as error:
        raise UserError(problem(error)) from None


def require_tensors(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise unless the tensors are finite and make a classifier of the card's classes.

    How the tensors of an end-to-end method fit is known only where its model is.

    Args:
        card: One that `require_card` lets pass.
        tensors: By name.

    Raises:
        UserError: They are not; names the place, what was expected there and what was found.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"tensor {name}: expected finite numbers, got others")
    tree, n_classes = card["classifier"], len(card["classnames"])
    if tree is None:
        return
    try:
        entries = list(_entries(tree))
        named = [value for key, value in entries if key == "tensor"]
        if sorted(map(str, named)) != sorted(tensors):
            odd = min({*map(str, named)} ^ {*tensors}, default="one of them twice")
            raise UserError(f"classifier: expected to use each tensor once, got {odd} otherwise")
        for key, value in entries:
            if key == "n_classes" and value != n_classes:
                raise UserError(f"classifier: expected n_classes {n_classes}, got {value!r}")
        # The first tensor of every kind of classifier is a matrix of features.
        dim = _dim(card) or tensors[named[0]].shape[-1]
        classifier = put_together(tree, tensors)
        if isinstance(classifier, PooledClassifier):
            dim = len(classifier.scale)
        query = normalize(torch.randn(2, dim, generator=torch.Generator().manual_seed(0)), dim=1)
        with warnings.catch_warnings(action="ignore"):
            logits = classifier.logits(query)
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"classifier: expected parts that fit, got others ({reason})") from None
    if tuple(logits.shape) != (2, n_classes) or not torch.isfinite(logits).all():
        raise UserError(
            f"classifier: expected finite logits of {n_classes} classes, "
            f"got {tuple(logits.shape)} for two images"
        )


def _dim(card: Mapping[str, Any]) -> int | None:
    """D of the features: the model's, or that of both models of a pair; None where nobody knew."""
    models = [card["model"], *([card["beside"]["model"]] if card.get("beside") else [])]
    dims = [model.get("dim") for model in models]
    return sum(dims) if all(dims) else None


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    """Keys and plain values of a classifier's tree, without those of its tables of values."""
    for key, value in node.items():
        if not isinstance(value, Mapping):
            yield key, value
        elif key != "values":
            yield from _entries(value)


class _Closed(BaseModel):
    """Values of these types under these names, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Open(_Closed):
    """Values of these types under these names, and any others."""

    model_config = ConfigDict(extra="allow")


class _Model(_Open):
    name: Name
    arch: str | None = None
    tag: str | None = None
    weights: str | None = None
    quick_gelu: bool | None = None
    logit_scale: Annotated[float, Field(gt=0)] | None = None
    dim: Size | None = None
    image_size: Size | None = None


class _Preprocessing(_Closed):
    size: Size
    mean: Channels
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
    interpolation: Literal["bicubic", "bilinear", "random", "fast-bicubic", "fast-bilinear"]
    resize_mode: Literal["shortest", "squash", "longest"]
    fill_color: Annotated[int, Field(ge=0, le=255)]
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0
    exif: bool = True


class _Training(_Open):
    dataset: str | None = None
    fingerprint: str | None = None
    imported: bool = False
    shots: WholeNumber = 0
    seed: int = 0
    tune: str | None = None
    images: WholeNumber = 0
    images_per_class: list[WholeNumber] | None = Field(None, alias="images per class")
    views: WholeNumber = 0
    validation_images: WholeNumber = Field(0, alias="validation images")
    text_recipe: str | None = Field(None, alias="text recipe")
    prompt_set: str | None = Field(None, alias="prompt set")
    test_accuracy: Fraction | None = Field(None, alias="test accuracy")
    test_images: WholeNumber = Field(0, alias="test images")
    versions: dict[str, str | None] = {}


class _Calibration(_Closed):
    temperature: Annotated[float, Field(gt=0)]
    images: WholeNumber
    source: Literal["cv", "val", "none"]
    accuracy: Fraction | None
    interval: Interval | None
    error: Fraction | None
    error_before: Fraction | None

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        found = (self.accuracy, self.interval, self.error, self.error_before)
        known = [value is not None for value in found]
        if any(known) and not (all(known) and self.source != "none"):
            raise ValueError(
                "expected accuracy, interval, error, error_before and a source, or none of them; "
                f"got {', '.join(map(str, found))} and {self.source}"
            )
        return self


def _sorted(values: list[float]) -> list[float]:
    if values != sorted(values):
        raise ValueError("expected ascending numbers, got others")
    return values


class _OpenSet(_Closed):
    name: Name
    score: dict[str, Any]
    held_out: Annotated[list[float], Field(min_length=1), AfterValidator(_sorted)]
    auroc: Fraction
    range: Interval
    refused: Fraction
    compared: dict[str, Fraction]


class _LabelRule(_Closed):
    slopes: list[Annotated[float, Field(gt=0)]]
    shifts: list[float]
    thresholds: list[Fraction]
    images: Size
    mean_average_precision: Fraction


class _Beside(_Closed):
    model: _Model
    preprocessing: _Preprocessing | Annotated[dict[str, Any], Field(max_length=0)]
    weight: Annotated[float, Field(ge=0, lt=1)]


class _Card(_Closed):
    format: int
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    method: Name
    settings: dict[str, JsonValue]
    model: _Model
    preprocessing: _Preprocessing | None
    precision: Literal["fp32", "bf16", "fp16", "unknown"]
    classnames: Annotated[list[str], Field(min_length=1)]
    prompts: list[Annotated[list[str], Field(min_length=1)]]
    templates: list[str]
    training: _Training
    calibration: _Calibration
    classifier: dict[str, Any] | None
    held_out: list[Annotated[list[Fraction], AfterValidator(_sorted)]] = []
    open_set: _OpenSet | None = None
    label_rule: _LabelRule | None = None
    beside: _Beside | None = None

    @model_validator(mode="after")
    def _one_entry_for_each_class(self) -> Self:
        counts = self.training.images_per_class
        rule = self.label_rule
        for name, entries in (
            ("label_rule.slopes", rule and rule.slopes),
            ("label_rule.shifts", rule and rule.shifts),
            ("label_rule.thresholds", rule and rule.thresholds),
            ("prompts", self.prompts),
            ("training.images per class", counts),
            ("held_out", self.held_out),
        ):
            needed = bool(entries) or (name.startswith("label_rule") and rule is not None)
            if needed and len(entries or ()) != len(self.classnames):
                raise ValueError(
                    f"{name}: expected {len(self.classnames)} entries, one for each class, "
                    f"got {len(entries or ())}"
                )
        return self

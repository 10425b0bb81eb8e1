"""Published accuracies beside ours: the curated table, and why protocols differ."""

import math
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import UserError

FILE = Path(__file__).resolve().parent / "published.toml"

ELEVEN = (
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
    "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101",
)  # fmt: skip
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
AVERAGES = ("average", "mean_of_harmonic_means")
PARTS = ("accuracy", "base", "new")
SETTINGS = (
    "zero-shot", "few-shot", "base-to-new", "domain-generalization", "unsupervised",
    "transductive zero-shot",
)  # fmt: skip
CONFIDENCES = ("high", "medium", "digitized")
TUNED_BY = ("none", "cv", "val", "full-val", "test")

# Names by which a method may go here, as the table has them.
ALIASES = {"lpp": "lp++", "lp-plus-plus": "lp++"}


@dataclass(frozen=True)
class PublishedProtocol:
    """How a figure came about; None is unknown.

    Attributes:
        tuned_by: One of `TUNED_BY`; `test` is with the test split's labels.
        on_imagenet: The same on ImageNet, where that differs.
        views: Augmented views of each image that was learned from; 0 for a fresh one every epoch.
        seeds: How many were averaged.
        note: What else to know.
    """

    note: str
    tuned_by: str | None = None
    on_imagenet: str | None = None
    views: int | None = None
    seeds: int | None = None


@dataclass(frozen=True)
class Figure:
    """One published accuracy.

    Attributes:
        method: As `METHODS` calls it.
        model: As papers call it.
        setting: The task.
        shots: Images per class; 0 for none.
        dataset: By its manifest's name, or one of `AVERAGES`.
        part: Of the classes: one of `PARTS`.
        accuracy: In 0..1.
        by: `authors` where the method's say it, else `others`.
        confidence: One of `CONFIDENCES`.
        source: What says it.
        where: Its address.
        protocol: How it came about.
    """

    method: str
    model: str
    setting: str
    shots: int
    dataset: str
    part: str
    accuracy: float
    by: str
    confidence: str
    source: str
    where: str
    protocol: PublishedProtocol


Key = tuple[str, str, str, int, str, str]  # method, model, setting, shots, dataset, part


def load(path: Path = FILE) -> dict[Key, Figure]:
    """The published accuracies, by what they are of.

    Raises:
        UserError: The file is not of this form: an accuracy out of range, a figure given twice, a
            source or protocol that is not described, or a name that nothing here has.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read published accuracies from {path}: {error}") from None
    protocols = {name: PublishedProtocol(**values) for name, values in content["protocol"].items()}
    for name, protocol in protocols.items():
        for tuned_by in (protocol.tuned_by, protocol.on_imagenet):
            if tuned_by is not None:
                _among(f"protocol {name}: tuned_by", tuned_by, TUNED_BY)
    figures: dict[Key, Figure] = {}
    for block in content["block"]:
        for figure in _figures(block, content["source"], protocols):
            key = key_of(figure)
            if key in figures:
                raise UserError(f"{path.name} has two figures of {key}; keep the better source")
            figures[key] = figure
    return figures


def key_of(figure: Figure) -> Key:
    """The key of the figure: what it was measured on."""
    f = figure
    return f.method, f.model, f.setting, f.shots, f.dataset, f.part


def method_name(name: str) -> str:
    """Our method's name as the table has it."""
    return ALIASES.get(name, name)


def model_name(name: str) -> str | None:
    """The model's name in papers; None where it is not one of OpenAI's, which they all use."""
    architecture, _, weights = name.partition("/")
    if weights not in ("openai", "openai-quickgelu"):
        return None
    architecture = architecture.removesuffix("-quickgelu")
    stem, dash, patch = architecture.rpartition("-")
    return f"{stem}/{patch}" if dash and stem.startswith("ViT") else architecture


def differences(
    figure: Figure, *, tune: str, n_views: int, seeds: Collection[int], text: bool
) -> tuple[str, ...]:
    """Where the figure's protocol differs from ours, in words; what is unknown is left out.

    Args:
        figure: The published one.
        tune: Our tuning protocol.
        n_views: Augmented views of each image that ours learned from.
        seeds: Ours.
        text: True if ours had text features.
    """
    protocol = figure.protocol
    theirs = protocol.tuned_by
    if figure.dataset in ("imagenet", *VARIANTS) and protocol.on_imagenet:
        theirs = protocol.on_imagenet
    found = []
    if theirs is not None and theirs != tune:
        words = "the test split" if theirs == "test" else theirs
        found.append(f"tuned by {words}, ours by {tune}")
    if figure.shots and protocol.views is not None and protocol.views != n_views:
        views = f"{protocol.views} view" + "s" * (protocol.views > 1)
        found.append(f"{views if protocol.views else 'a fresh view every epoch'}, ours {n_views}")
    if figure.shots and protocol.seeds is not None and protocol.seeds != len(seeds):
        found.append(f"{protocol.seeds} seed{'s' * (protocol.seeds > 1)}, ours {len(seeds)}")
    if not text:
        found.append("ours without text")
    return tuple(found)


def _figures(
    block: dict[str, Any], sources: dict[str, Any], protocols: dict[str, PublishedProtocol]
) -> list[Figure]:
    """The figures of one block of the file."""
    name = f"published block of {block['method']}, {block['model']}, {block['setting']}"
    _among(f"{name}: source", block["source"], sources)
    _among(f"{name}: protocol", block["protocol"], protocols)
    _among(f"{name}: setting", block["setting"], SETTINGS)
    _among(f"{name}: confidence", block["confidence"], CONFIDENCES)
    _among(f"{name}: by", block["by"], ("authors", "others"))
    source = sources[block["source"]]
    figures = []
    for part in PARTS:
        for dataset, values in block.get(part, {}).items():
            _among(f"{name}: dataset", dataset, (*ELEVEN, *VARIANTS, *AVERAGES))
            if len(values) != len(block["shots"]):
                raise UserError(f"{name}: {dataset} has {len(values)} figures, not one per shots")
            for shots, percent in zip(block["shots"], values, strict=True):
                if math.isnan(percent):
                    continue
                if not 1 < percent < 100:
                    raise UserError(f"{name}: {percent} on {dataset} is no accuracy in percent")
                figures.append(
                    Figure(
                        block["method"], block["model"], block["setting"], shots, dataset, part,
                        percent / 100, block["by"], block["confidence"], source["title"],
                        source["where"], protocols[block["protocol"]],
                    )
                )  # fmt: skip
    return figures


def _among(what: str, value: object, known: Collection[str]) -> None:
    if value not in known:
        raise UserError(f"{what} must be one of {', '.join(known)}; got {value!r}")

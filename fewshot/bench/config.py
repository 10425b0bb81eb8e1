"""The settings of a benchmark, by flags, by a TOML file, or by a file and flags over it.

A file has the keys

    methods = ["gda", "ridge"]        # or "all"
    datasets = "all"
    shots = [1, 2, 4, 8, 16]
    seeds = [1, 2, 3]
    out = "runs/alpha"

    [set]
    alpha = [0.1, 0.3, 0.5]           # of every method that has it
    ridge.penalty = 1.0               # of this one

    [train]                           # of methods trained through the model
    precision = "bf16"

and every one can be left out, as can those that are named like flags and not shown here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from cache.errors import UserError, unknown
from cache.files.toml_table import TomlTable, parse_toml
from cache.location import default_root
from fewshot.bench.trained import TrainOptions, read_train_options
from fewshot.model_selection.protocols import Share
from fewshot.open_set import Known, Score, parse_known
from fewshot.protocol import SETTINGS, TRANSFERS, Protocol, Setting

ALL = ("all",)
ENGINES = ("process", "ray")


@dataclass(frozen=True)
class Bench:
    """The runs of a benchmark: all combinations of these.

    Attributes:
        methods: Names, or `ALL`.
        datasets: Names, or `ALL` that have a store; where learning is transferred, the targets.
        models: Names or pairs `FIRST+SECOND`, or `ALL` that have a store.
        shots: K, images per class; 0 for methods that can do without.
        seeds: Random seeds for drawing them.
        tune: The tuning protocol; None for the default.
        settings: `FIELD` or `METHOD.FIELD` -> the values to try, as text.
        prompts: Prompt sets of the stores; none for the datasets' own.
        protocol: One of `run.SETTINGS`.
        source: The dataset to learn, where learning is transferred.
        known: The known classes of an open set, by number or by name; see `run.Protocol`.
        score: The score that separates their images from others; see `run.Protocol`.
        imbalance: How unequal the classes are to be; see `imbalance.draw_imbalanced`.
        blend: The method's share of the logits; see `run.Protocol`.
        synthesize: The generator of the new classes' features; see `run.Protocol`.
        jobs: Worker processes.
        engine: One of `ENGINES`: where these are.
        out: The folder of results.
        store: The folder of stores.
        predictions: Save predictions.
        train: Options of methods that are trained through the model.

    Raises:
        UserError: A value that will not do, or two that exclude each other.
    """

    methods: tuple[str, ...] = ALL
    datasets: tuple[str, ...] = ALL
    models: tuple[str, ...] = ALL
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    seeds: tuple[int, ...] = (1, 2, 3)
    tune: str | None = None
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    protocol: Setting = "few-shot"
    source: str | None = None
    known: Known | None = None
    score: Score = "mcm"
    imbalance: str | None = None
    blend: Share = "auto"
    synthesize: str | None = None
    jobs: int = 1
    engine: str = "process"
    out: Path = Path("runs/bench")
    store: Path = field(default_factory=default_root)
    predictions: bool = True
    train: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        for name in ("methods", "datasets", "models", "shots", "seeds"):
            if not getattr(self, name):
                raise UserError(f"{name} must name one or more; got none; leave it out for all")
        if self.jobs < 1:
            raise UserError(f"jobs must be 1 or more; got {self.jobs}")
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        if self.protocol not in SETTINGS:
            raise unknown("protocol", self.protocol, SETTINGS)
        if (self.source is None) == (self.protocol in TRANSFERS):
            wants = "needs a source" if self.source is None else "takes no source"
            raise UserError(f"{self.protocol} {wants}, the dataset that is learned for others")
        if self.known is not None and self.protocol == "few-shot":
            object.__setattr__(self, "protocol", "open-set")
        for shots, seed in product(self.shots, self.seeds):
            self.asked(shots, seed)

    def asked(self, shots: int, seed: int) -> Protocol:
        """The protocol of the runs with these shots and this seed.

        Raises:
            UserError: Values of it that exclude each other.
        """
        return Protocol(
            shots=shots,
            seed=seed,
            tune=self.tune,
            imbalance=self.imbalance,
            setting=self.protocol,
            known=self.known,
            score=self.score,
            blend=self.blend,
            synthesize=self.synthesize,
        )


def configured(flags: Mapping[str, Any], config: Path | None = None) -> Bench:
    """The benchmark that the flags describe, over the file's where they leave something open.

    Args:
        flags: By the names of `Bench`'s attributes; None is not given. Settings are overridden
            one by one, and so are the options of training, by the names of `TrainOptions`. The
            known classes may be a text for `parse_known`.
        config: A TOML file.

    Raises:
        UserError: The file cannot be read or says something unknown, or what `Bench` raises.
    """
    values = {} if config is None else _read(config)
    given = {name: value for name, value in flags.items() if value is not None}
    settings = {**values.get("settings", {}), **given.get("settings", {})}
    train = TrainOptions(**{**values.get("train", {}), **given.get("train", {})})
    merged = {**values, **given, "settings": settings, "train": train}
    if isinstance(merged.get("known"), str):
        named = merged.get("datasets", ALL)
        merged["known"] = parse_known(merged["known"], *(named if named != ALL else ()))
    return Bench(**merged)


def parse_settings(pairs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`["alpha=1,2", "gda.shrinkage=oas"]` as names and the values to try.

    Raises:
        UserError: Not of this form, or one name twice.
    """
    settings: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        values = _words(text)
        if not name or not values:
            raise UserError(f"--set must be [METHOD.]NAME=VALUE[,VALUE...]; got {pair!r}")
        if name in settings:
            raise UserError(f"--set {name} is given twice; list its values: {name}=A,B")
        settings[name] = values
    return settings


def _read(file: Path) -> dict[str, Any]:
    try:
        table = parse_toml(file.read_bytes(), str(file))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    values: dict[str, Any] = {
        **{key: _names(table, key) for key in ("methods", "datasets", "models", "prompts")},
        **{key: table.integers(key) for key in ("shots", "seeds")},
        **{
            key: table.text(key)
            for key in ("tune", "protocol", "engine", "source", "imbalance", "score", "synthesize")
        },
        **{key: Path(table.text(key)).expanduser() for key in ("out", "store") if table.text(key)},
        "known": _known(table),
        "blend": table.number_or("auto", "blend"),
        "jobs": table.integer("jobs", at_least=1),
        "predictions": table.boolean("predictions"),
        "settings": _settings(table.table("set")),
        "train": read_train_options(table.table("train")),
    }
    table.refuse_unread()
    asked = {*table.content, "settings"}
    return {key: value for key, value in values.items() if key in asked and value != ""}


def _known(table: TomlTable) -> Known | str | None:
    """The known classes: a number, names, or a text for `parse_known`; empty where none are."""
    match table.content.get("known"):
        case int():
            return table.integer("known", at_least=2)
        case str():
            return table.text("known")
    return table.texts("known") or ""


def _names(table: TomlTable, key: str) -> tuple[str, ...]:
    """A list of names, or a text of names with commas between, as a flag has them."""
    if isinstance(table.content.get(key), str):
        return _words(table.text(key))
    return table.texts(key)


def _settings(table: TomlTable, prefix: str = "") -> dict[str, tuple[str, ...]]:
    settings: dict[str, tuple[str, ...]] = {}
    for key, value in table.content.items():
        if isinstance(value, dict) and not prefix:
            settings |= _settings(table.table(key), f"{key}.")
            continue
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(one, str | int | float) for one in values):
            raise table.error(key, "a value or a list of values", value)
        settings[prefix + key] = tuple(str(one) for one in values)
    return settings


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))

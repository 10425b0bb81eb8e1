"""Mutated result lines, predictions, samples and bench files: read, or refused in one line.

FUZZ=2000 tries so many of each kind.
"""

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot.bench.config import configured
from fewshot.report import build as reports
from fewshot.results import comparisons, significance
from fewshot.results.log import append, read
from fewshot.results.prediction_files import Predictions, read_predictions, write_predictions
from fewshot.sample_file import read_sample, write_sample
from fewshot.sampling import draw
from tests.small_stores import write_store
from tests.toy_results import RESULT, result, zero_shot

pytestmark = pytest.mark.fuzz

INPUTS = int(os.environ.get("FUZZ", "200"))
WRONG: list[Any] = [
    None, True, False, 0, -1, 1, 2, 17, 10**12, 2**53, 2**63, 10**400, 0.5, -0.5, 1e-300, 1e300,
    float("nan"), float("inf"), "", "x", "\x00", "\n", "\ud800", "x" * 5000, "../../x", "<b>", [],
    [1], ["alpha"], [[]], [None], {}, {"a": 1}, {"a": {"b": [1]}}, "0" * 70, "base-to-new",
    "transductive few-shot", "domain-generalization", "domain-generalisation",
]  # fmt: skip
HALVES = {"setting": "base-to-new", "accuracies": {"base": 0.9, "new": 0.4}}
GOOD = [
    *(result(method=method, seed=seed) for method in ("gda", "ridge") for seed in (1, 2)),
    result(dataset="ucf101", fixed={"alpha": 2.0}), result(n_views=10, prompt_set="cupl"),
    zero_shot(),
    result(**HALVES), result(setting="cross-dataset", fitted_on="imagenet"),
    result(setting="imbalanced", imbalance="step:2", accuracies={"few": 0.2, "many": 0.9}),
    result(method="taskres", measures={"residual_size": 0.5, "trained_parameters": 9.0}),
]  # fmt: skip


def mutated(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The JSON value with one thing about it changed, at any depth."""
    if isinstance(value, dict | list) and value and (depth == 0 or rng.random() < 0.5):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, changed = rng.choice(keys), value.copy()
        match rng.randrange(4):
            case 0:
                del changed[key]
            case 1 if isinstance(changed, dict):
                changed[str(rng.choice(WRONG))] = rng.choice(WRONG)
            case _:
                changed[key] = mutated(rng, value[key], depth + 1)
        return changed
    return rng.choice(WRONG)


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The bytes with some flipped, cut off, or repeated."""
    at = rng.randrange(len(content))
    match rng.randrange(4):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + content[rng.randrange(len(content)) :]
        case _:
            spoiled = bytearray(content)
            for _ in range(rng.randrange(1, 4)):
                spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
            return bytes(spoiled)


def lines(rng: random.Random, n: int) -> Iterator[bytes]:
    for _ in range(n):
        values = json.loads(rng.choice(GOOD).to_json())
        if rng.random() < 0.3:  # as lines were before they had a schema
            values = {**values, "fixed": list(values["fixed"])}
            del values["schema"]
        match rng.randrange(10):
            case 0:
                yield damaged(rng, json.dumps(values).encode()).replace(b"\n", b" ")
            case 1:
                opened = rng.choice(("[", '{"a":')) * rng.choice((150, 3000, 100_000))
                yield opened.encode()
            case _:
                yield json.dumps(mutated(rng, values)).encode()


def test_no_line_ends_a_report_or_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 50)
    rng = random.Random(0)
    labels = np.arange(30) % 3
    file = tmp_path / "results.jsonl"
    batch = 50
    for first in range(0, INPUTS, batch):
        file.unlink(missing_ok=True)
        for i, one in enumerate(GOOD):
            path = tmp_path / f"{i}.npz"
            said = Predictions(np.roll(labels, i % 3), labels, ("a", "b", "c"), "same")
            write_predictions(path, said)
            append(file, one.saved_as(str(path)))
        with file.open("ab") as log:
            log.writelines(line + b"\n" for line in lines(rng, min(batch, INPUTS - first)))
        skipped: list[str] = []
        found = read(file, skipped.append)
        assert {one.run for one in GOOD} <= {one.run for one in found}
        assert all(message.isprintable() and len(message) < 500 for message in skipped)
        assert skipped
        made = reports.make(found, notes=skipped)
        for form in ("text", "csv"):
            assert reports.main_tables(made, form)
        with contextlib.suppress(UserError):  # a line may name a file that holds no predictions
            comparisons.compare_runs(file, "gda", "ridge", say=skipped.append)
    written = reports.write(made, tmp_path / "report")
    assert written[0].is_file()


def arrays(rng: random.Random) -> dict[str, Any]:
    labels = np.arange(9) % 3
    about = {"classnames": ["a", "b", "c"], "images": "0123456789abcdef"}
    values: dict[str, Any] = {"predicted": labels, "labels": labels, "about": about}
    match rng.randrange(4):
        case 0:
            values["about"] = mutated(rng, about)
        case 1:
            key = rng.choice(("predicted", "labels"))
            values[key] = rng.choice((
                labels[None], labels - 1, labels + 1, labels[:-1], labels / 2, labels[:0],
                labels.astype(str), np.zeros((3, 0)), labels.astype(complex), np.array(1),
                labels.astype(np.uint64) + 2**63, np.array(["x"]), labels.astype(bool),
            ))  # fmt: skip
        case 2:
            del values[rng.choice(list(values))]
    if "about" in values:
        values["about"] = np.array(json.dumps(values["about"]))
    return values


def test_no_file_of_predictions_ends_in_a_traceback(tmp_path: Path) -> None:
    rng = random.Random(1)
    path = tmp_path / "p.npz"
    refused = 0
    for _ in range(INPUTS):
        np.savez_compressed(path, **arrays(rng))
        if rng.random() < 0.6:
            path.write_bytes(damaged(rng, path.read_bytes()))
        try:
            said = read_predictions(path)
        except UserError:
            refused += 1
            continue
        assert said.predicted.dtype == said.labels.dtype == np.int64
        assert len(said.predicted) == len(said.labels) > 0
        assert 0 <= said.predicted.min() <= said.predicted.max() < len(said.classnames)
        assert 0 <= said.labels.min() <= said.labels.max() < len(said.classnames)
        reports.main_tables(reports.make([replace(RESULT, predictions=str(path))]), "text")
    assert refused > INPUTS / 4


def test_no_sample_ends_in_a_traceback(tmp_path: Path) -> None:
    store = FeatureStore.open(write_store(tmp_path, "pets"))
    file = tmp_path / "s.json"
    few = draw(
        store.labels("train"), store.classnames, shots=2, seed=1, val_labels=store.labels("val")
    )
    write_sample(file, few, store)
    good = file.read_bytes()
    assert read_sample(file, store).shots == 2

    def change(rng: random.Random) -> bytes:
        return json.dumps(mutated(rng, json.loads(good))).encode()

    assert refusals(file, good, change, lambda: read_sample(file, store)) > INPUTS / 4


BENCH = {
    "methods": ["gda"], "datasets": "all", "shots": [1, 2], "seeds": [1], "jobs": 2, "out": "o",
    "tune": "cv", "predictions": False, "imbalance": "step:2", "set": {"alpha": [0.5, 1]},
}  # fmt: skip


def toml(values: Any) -> str:
    top = values if isinstance(values, dict) else {"methods": values}
    return "\n".join(f"{json.dumps(str(key))} = {inline(value)}" for key, value in top.items())


def inline(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{json.dumps(str(key))} = {inline(one)}" for key, one in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    return json.dumps(value)


def test_no_bench_file_ends_in_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"

    def change(rng: random.Random) -> bytes:
        return toml(mutated(rng, BENCH)).encode()

    good = toml(BENCH).encode()
    file.write_bytes(good)
    assert configured({}, file).shots == (1, 2)
    assert refusals(file, good, change, lambda: configured({}, file)) > INPUTS / 4


def refusals(
    file: Path, good: bytes, change: Callable[[random.Random], bytes], use: Callable[[], object]
) -> int:
    """How many of the changed files are refused; anything but a user error ends the test."""
    rng = random.Random(2)
    refused = longest = 0
    for _ in range(INPUTS):
        file.write_bytes(damaged(rng, good) if rng.random() < 0.4 else change(rng))
        try:
            use()
        except UserError as error:
            refused += 1
            longest = max(longest, len(str(error)))
    assert longest < 2000
    return refused

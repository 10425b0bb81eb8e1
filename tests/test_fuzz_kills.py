"""Commands killed at moments drawn at random and typed again end as undisturbed ones do.

On demand alone: FUZZ=200 kills so many times. Each command is timed first, and a kill that comes
after its end does not count.
"""

import os
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache.models.loading import load
from tests.forked import needs_fork
from tests.nasty_photos import two_classes
from tests.small_stores import write_store
from tests.stopped_runs import Job, run
from tests.toy_adapters import fitted_adapter

KILLS = int(os.environ.get("FUZZ", "0"))
pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.skipif(not KILLS, reason="FUZZ says how many kills there are to be"),
    needs_fork,
]
TINY = ("--model", "tiny", "--store", "s")
TOYS = ("--dataset", "toys", "--store", "../../stores")
COMMANDS = {
    "extract": ("extract", "--dataset", "../../photos", *TINY),
    "views": ("extract", "--dataset", "../../photos", "--views", "3", *TINY),
    "import": ("import", "../../toys.npz", "--dataset", "toys", "--if-exists", "skip", *TINY),
    "fit": ("fit", "gda", *TOYS, "--save", "out/a.safetensors", "--results", "out/r.jsonl",
            "--save-predictions", "out/p"),
    "sample": ("fit", "ridge", *TOYS, "--shots", "2", "--export-sample", "out/s.json",
               "--results", "out/r.jsonl"),
    "train": ("train", "vpt-deep", "--dataset", "../../photos", "--shots", "2", *TINY,
              "--set", "iterations_per_shot=3", "--out", "out", "--resume",
              "--save", "out/a.safetensors"),
    "bench": ("bench", "--store", "../../stores", "--methods", "nearest-mean,ridge",
              "--shots", "1,2", "--seeds", "1,2", "--out", "out/b"),
    "report": ("report", "../../results.jsonl", "--out", "out/r"),
    "auto": ("auto", "../../photos", "--methods", "zero-shot,nearest-mean", "--out", "out/auto",
             *TINY),
    "export": ("export", "../../a.safetensors", "--to", "open_clip", "--out", "out/exported"),
    "export over one": ("export", "../../a.safetensors", "--to", "onnx", "--out", "out/onnx"),
    "doctor": ("doctor", "--store", "s"),
}  # fmt: skip
# What says how long something took, when, or where.
VOLATILE = re.compile(
    r"(\.jsonl|\.sqlite|\.html|\.lock|report\.json|commands\.sh|checkpoints/.*\.json)$"
)


def left(home: Path) -> dict[str, bytes]:
    """Path -> bytes of the files in a folder, but for those that differ from run to run."""
    files = {path.relative_to(home).as_posix(): path for path in home.rglob("*") if path.is_file()}
    for name in ("first.txt", "again.txt"):
        files.pop(name, None)
    return {
        name: b"" if VOLATILE.search(name) else path.read_bytes() for name, path in files.items()
    }


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """A function that makes a job of a command, in a folder of its own."""
    two_classes(tmp_path / "photos", 6)
    write_store(tmp_path / "stores", "toys")
    rng, ids = np.random.default_rng(0), np.arange(12) % 3
    x, text = rng.normal(size=(12, 8)), rng.normal(size=(3, 8))
    np.savez(
        tmp_path / "toys.npz", train_features=x, train_labels=ids, test_features=x,
        test_labels=ids, text_features=text,
    )  # fmt: skip
    fitted_adapter(load("tiny", device="cpu"), "gda").save(tmp_path / "a.safetensors")
    fit = Job(str(tmp_path), ("fit", "gda", "--dataset", "toys", "--store", "stores",
                              "--results", "results.jsonl"))  # fmt: skip
    assert run(fit)[0] == [0]

    def make(command: str, number: int, after: float = 0.0) -> Job:
        home = tmp_path / command / str(number)
        home.mkdir(parents=True)
        return Job(str(home), COMMANDS[command], after=after)

    return make


@pytest.mark.timeout(0)  # as long as it takes
def test_whatever_is_killed_at_any_moment_ends_as_if_it_had_not_been(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    rng = random.Random(0)
    timed = {command: job(command, 0) for command in COMMANDS}
    seconds = {}
    for command, (codes, took) in zip(timed, map(run, timed.values()), strict=True):
        assert codes[0] == 0 or command == "doctor", (command, codes)
        seconds[command] = took
    hits = number = 0
    faults: list[str] = []
    while hits < KILLS:
        jobs = {}
        for _ in range(2 * len(COMMANDS)):
            number += 1
            command = list(COMMANDS)[number % len(COMMANDS)]
            jobs[number] = command, job(command, number, rng.uniform(0.01, seconds[command]))
        for n, (command, one) in jobs.items():
            codes, _ = run(one)
            home = tmp_path / command / str(n)
            hits += codes[0] == -9
            said = (home / "first.txt").read_text() + (home / "again.txt").read_text()
            wanted, found = left(tmp_path / command / "0"), left(home)
            if codes[1] != 0 and command != "doctor":
                faults.append(f"{home}: exit code {codes[1]}: {said[-300:]}")
            if "Traceback" in said:
                faults.append(f"{home}: a traceback: {said[-300:]}")
            if found != wanted:
                differing = {name for name in found | wanted if found.get(name) != wanted.get(name)}
                faults.append(f"{home}: differs in {sorted(differing)}")
        # Shown by pytest -s.
        sys.stdout.write(f"{hits} of {number} kills hit, {len(faults)} with faults\n")
    assert faults == []

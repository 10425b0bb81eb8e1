"""The files in examples/cluster/ parse, and give `fewshot` what docs/guide/cluster.md says."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import cli

CLUSTER = Path(__file__).resolve().parents[1] / "examples" / "cluster"
# A word per line, so that an argument with a space shows; Ray and SLURM do nothing.
STAND_INS = {"fewshot": 'printf "%s\\n" "$@"', "ray": ":", "srun": ":"}
SLURM = {"SLURM_JOB_ID": "9", "SLURM_CPUS_PER_TASK": "8", "SLURM_NNODES": "4"}


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """A folder of commands that print what they are given."""
    for name, line in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def words(script: str, stand_ins: Path, **environment: str) -> list[str]:
    """The arguments that a script gives to `fewshot`."""
    path = f"{stand_ins}:{os.environ['PATH']}"
    known = {"PATH": path, "HOME": "/home/me", "TMPDIR": str(stand_ins)}
    done = subprocess.run(
        ["bash", "-eu", "-c", script], env=known | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def options(found: list[str]) -> dict[str, Any]:
    """What the command line makes of these arguments of `fewshot`; it fails on unknown ones."""
    group: Any = cli.tree(cli.app)
    context = group.commands[found[0]].make_context(found[0], found[1:])
    return dict(context.params)


def job(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The specification of a Kubernetes job, and its container."""
    described = yaml.safe_load((CLUSTER / name).read_text())
    assert (described["apiVersion"], described["kind"]) == ("batch/v1", "Job")
    (container,) = described["spec"]["template"]["spec"]["containers"]
    return described["spec"], container


def told(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"]}


def test_the_array_and_the_job_encode_each_share_once_and_their_last_step_takes_the_same(
    stand_ins: Path,
) -> None:
    spec, pod = job("extract-job.yaml")
    _, last_pod = job("extract-assemble-job.yaml")
    array = (CLUSTER / "extract-array.sbatch").read_text()
    last = (CLUSTER / "extract-assemble.sbatch").read_text()
    assert "#SBATCH --array=1-16\n" in array
    assert spec["completions"] == 16
    assert told(pod)["OMP_NUM_THREADS"] == told(last_pod)["OMP_NUM_THREADS"]
    for index in (0, 15):
        for made, end in (
            (
                words(array, stand_ins, SLURM_ARRAY_TASK_ID=str(index + 1), **SLURM),
                words(last, stand_ins, **SLURM),
            ),
            (
                words(pod["args"][0], stand_ins, JOB_COMPLETION_INDEX=str(index), **told(pod)),
                words(last_pod["args"][0], stand_ins, **told(last_pod)),
            ),
        ):
            mine, whole = options(made), options(end)
            assert mine["shard"] == f"{index + 1}/16"
            assert whole["shard"] is None
            assert mine["store"] != whole["store"]
            for same in ("dataset", "model", "share"):
                assert mine[same] == whole[same]
            assert mine["dataset"] == "s3://bucket/fruit/train-{000..999}.tar"


def test_the_job_of_ray_starts_a_worker_for_each_node(stand_ins: Path) -> None:
    asked = options(words((CLUSTER / "ray.sbatch").read_text(), stand_ins, **SLURM))
    assert (asked["engine"], asked["processes"], asked["shard"]) == ("ray", 4, None)


def test_every_file_is_on_the_page() -> None:
    page = (CLUSTER.parents[1] / "docs" / "guide" / "cluster.md").read_text()
    assert all(f"{file.name}" in page for file in CLUSTER.iterdir())

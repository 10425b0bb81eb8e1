import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache.datasets.resolving import find
from cache.errors import UserError
from cache.extract import extract
from cache.extraction import new_images, ray_cluster
from cache.identity import Recipe
from cache.models.loading import load
from fewshot.bench.benchmark import BenchOutcome, run
from fewshot.bench.config import Bench
from fewshot.bench.plan import plan
from fewshot.results.log import Result, read
from tests.object_storage import KEY, ObjectStorage
from tests.shard_files import samples, tar
from tests.small_stores import write_store

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray, botocore and moto


@pytest.fixture(scope="module")
def storage() -> Iterator[ObjectStorage]:
    """An object storage, with 24 images in two shards, that this process and Ray's know."""
    for library in ("moto", "s3fs", "werkzeug"):
        pytest.importorskip(library)
    import fsspec

    storage = ObjectStorage()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", storage.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("photos")
        for i in range(2):
            content = tar(samples(range(12 * i, 12 * i + 12)))
            system.pipe_file(f"photos/fruit/train-{i}.tar", content)
        system.pipe_file("photos/fruit/classnames.txt", b"apple\npear\n")
        yield storage
    storage.close()


@pytest.fixture(scope="module")
def nodes(storage: ObjectStorage) -> Iterator[Any]:
    """A Ray cluster of two nodes with a CPU each, to which this process is connected."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    memory = 100 * 2**20
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": memory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1, object_store_memory=memory)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class Doomed:
    """A worker that a task may end, by the number of its past lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        pass

    def work(self, task: tuple[str, int]) -> tuple[str, int]:
        name, deaths = task
        (self.folder / f"{name}-{time.monotonic_ns()}").touch()
        if len(list(self.folder.glob(f"{name}-*"))) <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return name, os.getpid()


def test_a_lost_worker_costs_its_task_and_one_that_is_lost_each_time_costs_that_alone(
    nodes: Any, tmp_path: Path
) -> None:
    with ray_cluster.cluster() as ray:
        with pytest.raises(UserError, match="needs 1 GPU and the cluster has 0; add a node"):
            ray_cluster.workers(ray, Doomed, (tmp_path,), 2, gpus=1)
        workers = ray_cluster.workers(ray, Doomed, (tmp_path,), 2)
        tasks = [("a", 0), ("b", 2), ("c", 99), ("d", 0), ("e", 0)]
        made = dict(ray_cluster.spread(ray, workers, tasks))
    assert [made[task][0] for task in tasks if task[0] != "c"] == ["a", "b", "d", "e"]
    assert isinstance(made[tasks[2]], ray_cluster.WorkerLostError)
    assert len(list(tmp_path.glob("b-*"))) == len(list(tmp_path.glob("c-*"))) == 3


def test_two_nodes_without_a_common_disk_lose_a_worker_and_make_the_bytes_of_one_process(
    nodes: Any, storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_images, "ROWS", 4)
    encoder, recipe = load("tiny", device="cpu"), Recipe({})
    source = find("s3://photos/fruit/train-{0..1}.tar")
    extract(source, encoder, recipe, tmp_path / "serial.h5")
    killed: list[int] = []
    keep = new_images.NewImages.keep

    def kill_one(self: Any, encoded: Any) -> None:
        keep(self, encoded)
        if not killed:
            killed.append(next(iter(workers_at_work())))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(new_images.NewImages, "keep", kill_one)
    cluster = tmp_path / "cluster.h5"
    share = "s3://photos/features"
    extract(source, encoder, recipe, cluster, engine="ray", processes=2, share=share)
    assert cluster.read_bytes() == (tmp_path / "serial.h5").read_bytes()
    assert killed
    again = tmp_path / "again" / "again.h5"
    said: list[str] = []
    extract(source, encoder, recipe, again, share=share, say=said.append)
    assert "24 images encoded by other machines, from s3://photos/features" in said


@pytest.mark.usefixtures("nodes")
def test_a_benchmark_on_ray_has_the_results_of_one_process_and_continues(tmp_path: Path) -> None:
    write_store(tmp_path / "features", "one")
    bench = Bench(
        methods=("gda", "nearest-mean"), shots=(1, 2), seeds=(1,), store=tmp_path / "features",
        out=tmp_path / "serial",
    )  # fmt: skip
    here = run(bench, plan(bench), lambda text: None)
    bench = replace(bench, out=tmp_path / "ray", engine="ray", jobs=2, seeds=(1,))
    first = replace(bench, shots=(1,))
    run(first, plan(first), lambda text: None)
    assert len(read(bench.out / "results.jsonl", print)) == 2
    there = run(bench, plan(bench), lambda text: None)
    assert len(read(bench.out / "results.jsonl", print)) == 4
    assert accuracies(here) == accuracies(there)
    assert len(accuracies(there)) == 4
    assert len(list((bench.out / "predictions").iterdir())) == 4


def workers_at_work() -> list[int]:
    """The processes of Ray that hold a worker of extraction."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::Worker" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return sorted(found)


def accuracies(outcome: BenchOutcome) -> list[float]:
    return [result.accuracy for result in outcome.runs if isinstance(result, Result)]

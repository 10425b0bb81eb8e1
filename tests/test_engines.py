import socket
import sys
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cache.datasets.source import Source
from cache.errors import UserError
from cache.extract import extract
from cache.extraction import engines, new_images
from cache.extraction.shards import Encoded, encode_shard
from cache.models.encoder import Encoder
from tests.forked import needs_fork
from tests.recipes import recipe_of


# One that is spawned, as all are where this is not a test, takes seconds to load the libraries.
@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(("way", "n"), [("spawn", 1), pytest.param("fork", 2, marks=needs_fork)])
def test_worker_processes_give_the_same_bytes(
    colored: Source, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, way: str, n: int,
) -> None:  # fmt: skip
    asked: list[str] = []

    def context(usual: str) -> BaseContext:
        asked.append(usual)
        return get_context(way)

    monkeypatch.setattr(engines, "get_context", context)
    serial, parallel = tmp_path / "serial.h5", tmp_path / "parallel.h5"
    extract(colored, encoder, recipe_of(colored), serial)
    capsys.readouterr()
    extract(colored, encoder, recipe_of(colored), parallel, engine="process", processes=n)
    assert asked == ["spawn"]
    assert "images 30/30" in capsys.readouterr().err
    assert parallel.read_bytes() == serial.read_bytes()


def test_an_unknown_engine_is_refused(colored: Source, encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown engine 'rya'; did you mean 'ray'"):
        extract(colored, encoder, recipe_of(colored), tmp_path / "s.h5", engine="rya")


def test_a_shard_ends_where_its_images_have_enough_bytes(
    colored: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def noted(cropping: Any, shard: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(len(shard.images))
        return encode_shard(cropping, shard, *rest, **options)

    monkeypatch.setattr(engines, "encode_shard", noted)
    for name in ("whole", "small"):
        extract(colored, encoder, recipe_of(colored), tmp_path / f"{name}.h5")
        monkeypatch.setattr(new_images, "BYTES", 2 * 1300)  # each photo has some 1,300
    assert sizes[0] == 30
    assert set(sizes[1:]) <= {1, 2, 3}
    assert (tmp_path / "small.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_images_of_one_shard_start_no_process_and_have_the_bytes_of_one(
    colored: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial, alone = tmp_path / "serial.h5", tmp_path / "alone.h5"
    before = torch.get_num_threads()
    at_work: list[int] = []

    def noted(*arguments: Any, **options: Any) -> Encoded:
        at_work.append(torch.get_num_threads())
        return encode_shard(*arguments, **options)

    monkeypatch.setattr(engines, "encode_shard", noted)
    monkeypatch.setattr(engines, "ProcessPoolExecutor", None)
    torch.set_num_threads(2)
    try:
        extract(colored, encoder, recipe_of(colored), alone, engine="process", processes=2)
        assert at_work == [1]
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        extract(colored, encoder, recipe_of(colored), serial)
    finally:
        torch.set_num_threads(before)
    assert alone.read_bytes() == serial.read_bytes()


@pytest.mark.usefixtures("small_shards")
def test_ray_that_does_not_start_is_said_in_one_line(
    colored: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(**options: object) -> None:
        raise Exception("The current node timed out during startup. This\ncould happen")

    ray = SimpleNamespace(is_initialized=lambda: False, init=late)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(
        UserError, match=r"\ARay does not start here \(The current node timed .*ray start --head"
    ) as caught:
        extract(colored, encoder, recipe_of(colored), tmp_path / "s.h5", engine="ray")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s.h5").exists()


@pytest.mark.usefixtures("small_shards")
def test_a_ray_cluster_that_does_not_answer_is_said_at_once(
    colored: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"  # where nobody listens
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
        with pytest.raises(
            UserError, match=rf"no Ray answers at RAY_ADDRESS={address} \(Conn.*ref"
        ):
            extract(colored, encoder, recipe_of(colored), tmp_path / "s.h5", engine="ray")


@pytest.mark.usefixtures("small_shards")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_actors_give_the_same_bytes(colored: Source, encoder: Encoder, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    serial, actors = tmp_path / "serial.h5", tmp_path / "actors.h5"
    extract(colored, encoder, recipe_of(colored), serial)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        extract(colored, encoder, recipe_of(colored), actors, engine="ray", processes=2)
        file = colored.root / colored.splits["train"][2].path
        file.write_bytes(file.read_bytes()[:400])
        with pytest.raises(UserError, match=r"\A1 image cannot be read, .*--skip-unreadable\Z"):
            extract(colored, encoder, recipe_of(colored), tmp_path / "b.h5", engine="ray")
    finally:
        ray.shutdown()
    assert actors.read_bytes() == serial.read_bytes()

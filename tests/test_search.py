"""The search for a composition: its space, its strategies, and the whole of it on a few photos."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Source
from cache.errors import UserError
from cache.models.encoder import Encoder
from cli import main
from fewshot.commands.parsing import parse_count
from fewshot.endtoend import train as train_module
from fewshot.endtoend.methods.composition import primitives
from fewshot.endtoend.parts import elastic as elastic_part
from fewshot.endtoend.parts.elastic import ElasticLoRA, elastic
from fewshot.endtoend.search import supernet
from fewshot.endtoend.search.composition_file import read_composition
from fewshot.endtoend.search.judged_file import JudgedFile
from fewshot.endtoend.search.searching import Searched, search
from fewshot.endtoend.search.space import Candidate, Space
from fewshot.endtoend.search.strategies import Fitness, evolution, random_search
from fewshot.results.log import read

PLACES = [("image_lora", i) for i in range(8)]
SPACE = Space({place: {0: 0, 1: 10, 2: 20, 4: 40} for place in PLACES}, fixed=5, budget=125)
OPTIONS: dict[str, Any] = {
    "shots": 4, "seed": 3, "budget": 400, "choices": (1, 2), "candidates": 6,
    "settings": {"iterations_per_shot": 1, "batch_size": 4}, "workers": 1,
}  # fmt: skip


@pytest.fixture
def source(draw_photos: Callable[..., Path]) -> Source:
    return resolve_folder(draw_photos(10))


def test_every_candidate_fits_into_the_budget() -> None:
    rng = random.Random(0)
    drawn = [SPACE.draw(rng) for _ in range(100)]
    more = [SPACE.mutate(one, 0.5, rng) for one in drawn]
    more += [SPACE.cross(one, other, rng) for one, other in zip(drawn, more, strict=False)]
    for candidate in (*drawn, *more):
        assert SPACE.size(candidate) == 5 + 10 * sum(candidate) <= 125
        assert set(candidate) <= {0, 1, 2, 4}
    assert max(map(SPACE.size, drawn)) == 125
    assert SPACE.mutate(drawn[0], 0.0, rng) == drawn[0]


def test_a_budget_below_the_smallest_composition_is_refused() -> None:
    with pytest.raises(UserError, match=r"--budget must be 15 or more.*got 14"):
        replace(SPACE, budget=14)


@pytest.mark.parametrize("strategy", [evolution, random_search])
def test_a_strategy_judges_so_many_different_candidates_and_returns_the_best(
    strategy: Callable[..., Candidate],
) -> None:
    asked: list[Candidate] = []

    def judge(candidate: Candidate) -> Fitness:
        asked.append(candidate)
        return 0.5, float(candidate[0] - candidate[1])  # by the loss, where accuracies are equal

    best = strategy(SPACE, judge, 120, 1)
    assert len(asked) == len(set(asked)) == 120
    assert judge(best) == max(map(judge, asked[:120]))
    first = asked[:120]
    asked.clear()
    assert strategy(SPACE, judge, 120, 1) == best
    assert asked == first


def test_evolution_begins_as_random_search_and_then_finds_better_ones() -> None:
    ours: list[Candidate] = []
    theirs: list[Candidate] = []
    fit = [4, 0, 0, 4, 0, 0, 4, 0]

    def judge(asked: list[Candidate], candidate: Candidate) -> Fitness:
        asked.append(candidate)
        return -float(sum(abs(a - b) for a, b in zip(candidate, fit, strict=True))), 0.0

    evolved = evolution(SPACE, partial(judge, ours), 400, 2)
    drawn = random_search(SPACE, partial(judge, theirs), 400, 2)
    assert ours[:50] == theirs[:50]
    assert judge([], evolved) > judge([], drawn)


def test_a_space_with_fewer_candidates_ends() -> None:
    small = Space({PLACES[0]: {0: 0, 1: 10}, PLACES[1]: {0: 0, 1: 10}}, 0, 10)
    for strategy in (evolution, random_search):
        assert strategy(small, lambda c: (float(c[1]), 0.0), 60, 1) == (0, 1)


def test_what_was_judged_is_kept_and_a_line_that_a_kill_cut_off_is_judged_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "judged.jsonl"
    file = JudgedFile(path, "a")
    file.add((1, 2), (0.1, -1 / 3))
    file.add((3, 4), (0.5, -2.0))
    whole = path.read_bytes()
    path.write_bytes(whole[:-6])
    again = JudgedFile(path, "a")
    assert again.get((1, 2)) == (0.1, -1 / 3)
    assert again.get((3, 4)) is None
    again.add((3, 4), (0.5, -2.0))
    assert path.read_bytes() == whole
    with pytest.raises(UserError, match="of another search"):
        JudgedFile(path, "b")


def outcome(encoder: Encoder, source: Source, folder: Path, **more: Any) -> Searched:
    return search(encoder, source, folder=folder, **{**OPTIONS, **more})


def trained(monkeypatch: pytest.MonkeyPatch) -> list[supernet.Supernet]:
    """The supernets that are trained from now on."""
    nets: list[supernet.Supernet] = []
    train = supernet.Supernet.train

    def noted(net: supernet.Supernet, *rest: Any) -> None:
        nets.append(net)
        train(net, *rest)

    monkeypatch.setattr(supernet.Supernet, "train", noted)
    return nets


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_search_that_was_stopped_anywhere_ends_as_one_that_was_not(
    encoder: Encoder, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = outcome(encoder, source, tmp_path / "whole")
    assert whole.n_judged == 12
    for name, found in whole.found.items():
        assert found.trained <= 400, name
    stops = iter([3, 6, 8 + 9])  # in a supernet, in another, between two compositions
    left = [0]

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    train, judge = train_module.train, supernet.Supernet.judge

    def ticking(*args: Any, watch: Callable[..., None], **options: Any) -> Any:
        def both(*seen: Any) -> None:
            watch(*seen)
            tick()

        return train(*args, watch=both, every=0.0, **options)

    def judged(self: supernet.Supernet, widths: Any) -> tuple[int, float]:
        tick()
        return judge(self, widths)

    monkeypatch.setattr(supernet, "train", ticking)
    monkeypatch.setattr(supernet.Supernet, "judge", judged)
    for stop in stops:
        left[0] = stop
        with pytest.raises(KeyboardInterrupt):
            outcome(encoder, source, tmp_path / "stopped")
    left[0] = 0
    assert outcome(encoder, source, tmp_path / "stopped") == whole
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_a_supernet_never_learns_from_what_it_judges_by_nor_reads_a_test_image(
    encoder: Encoder, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = trained(monkeypatch)
    for item in source.splits["test"]:
        (source.root / item.path).unlink()
    outcome(encoder, source, tmp_path / "cv", candidates=1)
    few = {item.path for net in nets for item in (*net.learned, *net.judged)}
    assert len(few) == 12
    assert [len(net.learned) for net in nets] == [9] * 4
    for net in nets:
        assert not {item.path for item in net.learned} & {item.path for item in net.judged}
        assert sorted(item.label for item in net.judged) == [0, 1, 2]


def test_a_step_of_a_supernet_moves_the_first_rows_of_random_widths_alone(
    encoder: Encoder, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets, used = trained(monkeypatch), list[dict[Any, int]]()
    narrow = elastic_part.narrow

    def noted(model: Any, widths: Any) -> None:
        used.append(widths)
        narrow(model, widths)

    monkeypatch.setattr(supernet, "narrow", noted)
    steps = {"iterations_per_shot": 1, "weight_decay": 0.0}
    outcome(encoder, source, tmp_path, shots=2, candidates=1, settings=steps, towers="both")
    assert {name for name, _ in used[0]} == set(primitives())
    assert used[0] != used[1]  # two steps
    for module in elastic(nets[0].clip.model):
        if isinstance(module, ElasticLoRA):
            widest = max(widths[module.place] for widths in used[:2])
            assert not module.B[:, widest:].any()
            assert module.B[:, :widest].any() == (widest > 0)


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({"tune": "val"}, "has no val split; use --tune cv"),
        ({"shots": 1}, "--tune cv needs two shots.*got 1"),
        ({"budget": 3}, "--budget must be .* or more"),
        ({"settings": {"image_lora": "3"}}, "search chooses image_lora; leave it out of --set"),
        ({"settings": {"lrr": "3"}}, "unknown setting of composition 'lrr'"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_work(
    encoder: Encoder, source: Source, tmp_path: Path, more: dict[str, Any], refused: str
) -> None:
    splits = {name: items for name, items in source.splits.items() if name != "val"}
    with pytest.raises(UserError, match=refused):
        outcome(encoder, replace(source, splits=splits), tmp_path / "none", **more)
    assert not (tmp_path / "none").exists()


def test_one_class_is_not_searched(encoder: Encoder, source: Source, tmp_path: Path) -> None:
    alone = replace(source, classnames=source.classnames[:1])
    with pytest.raises(UserError, match=r"a classifier needs two classes; .* has 1; add another"):
        outcome(encoder, alone, tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "number"), [("300k", 300_000), ("1.5M", 1_500_000), ("20000", 20_000)]
)
def test_a_budget_is_a_count(text: str, number: int) -> None:
    assert parse_count("--budget", text) == number


@pytest.mark.parametrize("text", ["", "k", "0", "1.5", "-3k", "nan", "infk", "300g"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--budget must be a count such as"):
        parse_count("--budget", text)


def test_the_command_writes_a_file_that_train_takes(
    draw_photos: Callable[..., Path],
    random_vit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["--dataset", str(draw_photos(8)), "--model", f"local-dir:{random_vit}", "--shots", "2"]
    monkeypatch.chdir(tmp_path)
    words = ["--budget", "0.4k", "--candidates", "3", "--set", "iterations_per_shot=1"]
    assert main(["search", *data, *words]) == 0
    said = capsys.readouterr()
    assert "on 6 images" in said.out
    assert [line.split()[0] for line in said.out.splitlines()[1:]] == [
        "none",
        "evolution",
        "random",
    ]
    assert "supernet 1 of 2: steps 2/2" in said.err
    assert "compositions 3/3" in said.err
    assert "fewshot train --composition composition.toml --dataset" in said.err
    content = Path("composition.toml").read_text()
    control = Path("composition.search/random.toml")
    assert f"{control}; train the control in the same way" in said.err
    assert "compositions by random search" in control.read_text()
    assert any(set(read_composition(control)[name]) - set("0,") for name in primitives())
    assert "is there" not in said.err
    assert main(["search", *data, *words, "--data-root", "pictures"]) == 0
    again = capsys.readouterr().err
    assert "steps" not in again
    assert "composition.search is there; what it has of this search is used" in again
    assert "--data-root pictures" in again
    assert Path("composition.toml").read_text() == content
    assert main(["train", "--composition", "composition.toml", *data]) == 0
    [result] = read(Path("runs/results.jsonl"))
    assert result.method == "composition"
    assert 0 < result.measures["trained_parameters"] <= 400
    assert f"{int(result.measures['trained_parameters']):,} trained parameters" in content
    for words, refused in [
        (["coop", "--composition", "composition.toml"], "takes the place of a method; got coop"),
        ([], "missing argument METHOD"),
    ]:
        assert main(["train", *words, *data]) == 2
        assert refused in capsys.readouterr().err
    assert main(["search", *data, "--out", "c.txt"]) == 2
    assert "--out must end in .toml" in capsys.readouterr().err

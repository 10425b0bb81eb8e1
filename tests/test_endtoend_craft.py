import ast
import builtins
import inspect
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.datasets.resolving import resolve_folder
from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.checkpoint import steps_done
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.experiment import run
from fewshot.endtoend.methods.craft import CraFT
from fewshot.endtoend.parts import black_box
from fewshot.endtoend.parts.black_box import Search, SearchSettings
from fewshot.parts.refiner import Refiner
from tests.naive_prompts import text_around
from tests.toys import vectors

pytest.importorskip("cma")

NAMES = ["cat", "long_haired dog", "zebra"]
LABELS = torch.arange(9) % 3
SMALL = CraFT(queries=12, population=4, latent=6, spread=30.0, hidden=5, lr=0.02, batch_size=4)
SETTINGS = SearchSettings(
    latent=6, spread=2.0, sigma=1.0, bound=5.0, population=4, consistency=0.3, plain_after=2,
    lr=0.02, batch_size=4, seed=1,
)  # fmt: skip


class Model:
    """Logits that depend on the context class by class, of two crops of nine images."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def logits(self, context: Tensor) -> Tensor:
        self.asked.append(context.clone())
        with torch.inference_mode():  # no gradient can be taken of it
            images = vectors(1, 2, 9, context.numel())
            return 5 * images @ (vectors(2, 3, context.numel()) * (1 + context.flatten())).T


def search(model: Model, **changes: Any) -> Search:
    words = vectors(0, 2, 4)
    refiner = Refiner.untrained(words, 3, 5, seed=1)
    return Search(model, LABELS, words, refiner, replace(SETTINGS, **changes))


def naive(o: Any, refined: Any, consistency: float) -> float:
    """CE(o, y) + consistency KL(softmax(refined) || softmax(o)), image by image."""
    total = 0.0
    for row, other, y in zip(o.tolist(), refined.tolist(), LABELS.tolist(), strict=True):
        p, q = (np.exp(r) / np.exp(r).sum() for r in (row, other))
        total -= math.log(p[y])
        total += consistency * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return total / len(LABELS)


def test_a_candidate_s_loss_keeps_the_prompts_to_the_refined_predictions() -> None:
    model = Model()
    found = search(model)
    for generation in range(3):
        refiner = found.refiner.with_parameters([p.clone() for p in found.refiner.parameters()])
        found.step()
        losses = found.state()["losses"][generation].tolist()
        contexts = model.asked[5 * generation : 5 * generation + 4]
        for context, loss in zip(contexts, losses, strict=True):
            o = Model().logits(context)[0].double()
            x = o - o.mean(dim=1, keepdim=True)
            w1, b1, w2, b2 = (p.double() for p in refiner.parameters())
            refined = o + (x @ w1.T + b1).clamp(min=0) @ w2.T + b2
            assert loss == pytest.approx(naive(o, refined, 0.3), abs=1e-5)
        assert (o - refined).abs().max() > 1e-3 or generation == 0


def test_after_its_share_of_the_generations_the_refiner_s_loss_is_without_the_divergence() -> None:
    model = Model()
    found = search(model, plain_after=1)
    for generation, consistency in enumerate((0.3, 0.0)):
        loss, accuracy = found.step()
        o = Model().logits(model.asked[-1])[generation].double()
        refined = found.refiner(o.float()).double()
        assert loss == pytest.approx(naive(refined, o, consistency), abs=1e-5)
        assert accuracy == pytest.approx(float((refined.argmax(dim=1) == LABELS).double().mean()))
        assert naive(refined, o, 0.3) > naive(refined, o, 0.0) + 1e-4


def test_a_query_is_a_candidate_or_a_deployed_context() -> None:
    model = Model()
    found = search(model)
    for _ in range(3):
        found.step()
    assert found.queries == len(model.asked) == 3 * (4 + 1)
    assert torch.equal(found.context, model.asked[-1])


def test_the_deployed_context_is_the_mean_of_the_distribution() -> None:
    found = search(Model(), bound=0.0)
    found.step()
    mean = torch.from_numpy(found._evolution.mean).float()
    expected = vectors(0, 2, 4) + (found._directions @ mean).view(2, 4)
    torch.testing.assert_close(found.context, expected)


def test_directions_are_as_long_as_the_spread_says() -> None:
    words = vectors(0, 20, 50)
    refiner = Refiner.untrained(words, 3, 5, seed=1)
    found = Search(Model(), LABELS, words, refiner, replace(SETTINGS, latent=60))
    shift = found._directions @ torch.randn(60, generator=torch.Generator().manual_seed(0))
    assert float(shift.std()) == pytest.approx(2 * float(words.std()), rel=0.15)


def test_the_search_lowers_the_loss_of_the_prompts() -> None:
    found = search(Model(), spread=10.0, lr=1e-9, population=12)
    for _ in range(15):
        found.step()
    losses = found.state()["losses"]
    assert losses[-1].mean() < losses[0].mean() - 0.1


def test_a_search_that_goes_on_ends_as_one_that_was_never_stopped() -> None:
    whole, before, after = search(Model()), search(Model()), search(Model())
    drawn = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002 (the one to leave alone)
    for _ in range(4):
        whole.step()
    for _ in range(2):
        before.step()
    after.load_state({name: tensor.clone() for name, tensor in before.state().items()})
    for _ in range(2):
        after.step()
    assert after.queries == whole.queries == 20
    for name, tensor in whole.learned().items():
        assert torch.equal(tensor, after.learned()[name])
    after_that = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002 (the same)
    assert np.array_equal(drawn, after_that)


def test_the_search_imports_nothing_that_holds_a_model() -> None:
    tree = ast.parse(inspect.getsource(black_box))
    imported = {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    }
    assert not [name for name in imported if name.startswith("fewshot.endtoend")]
    assert [name for name in vars(black_box.Oracle) if not name.startswith("_")] == ["logits"]


def test_without_the_package_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cma":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install 'fewshot-clip\[blackbox\]'"):
        search(Model())


@pytest.mark.parametrize(("shots", "generations"), [(1, 50), (2, 100), (4, 100), (8, 200)])
def test_the_published_queries_make_so_many_generations(shots: int, generations: int) -> None:
    assert CraFT().plan(shots, 10 * shots).iterations == generations
    assert CraFT(queries=410).plan(shots, 10 * shots).iterations == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": 39}, "queries must be enough for a generation of 40; got 39"),
        ({"ctx_init": " "}, "ctx_init must be words to start from"),
        ({"population": 1}, "population must be a whole number, 2 or more"),
        ({"spread": 0}, "spread must be"),
    ],
)
def test_what_cannot_be_searched_with_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CraFT(**settings)


def test_the_model_is_clip_with_the_context_in_front_of_the_names(encoder: Encoder) -> None:
    clip = Clip.of(encoder)
    learner = SMALL.attach(clip, NAMES, ["{}"])
    crops = normalize(vectors(3, 2, 9, 16), dim=-1)
    assert learner.search is not None
    found = learner.search(lambda i: crops[i % 2], LABELS, 3)
    context = learner.parameters["context"].detach() + 0.1
    got = found._oracle.logits(context)
    assert got.shape == (2, 9, 3)  # of ten crops asked for there are but two
    assert not got.requires_grad
    with torch.no_grad():
        expected = clip.logit_scale * crops @ text_around(encoder, context, NAMES).T
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(learner.logits(crops[0]), found._oracle.logits(found.context)[0])


def test_a_killed_run_goes_on_to_the_same_end(
    encoder: Encoder,
    draw_photos: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = resolve_folder(draw_photos(6))
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr("fewshot.endtoend.evolve.time.monotonic", lambda: next(clock))
    asked: dict[str, Any] = {"shots": 2, "seed": 1, "workers": 1}

    def stop(step: int, loss: float, accuracy: float, rate: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(SMALL, encoder, source, checkpoint=path, watch=stop, **asked)
    steps: list[int] = []
    resumed = run(
        SMALL, encoder, source, checkpoint=path, watch=lambda s, *_: steps.append(s), **asked
    )
    whole = run(SMALL, encoder, source, **asked)
    assert steps == [3]
    assert resumed.result.measures == whole.result.measures
    assert whole.result.measures["queries"] == 3 * (4 + 1)
    for name, value in whole.learner.parameters.items():
        assert torch.equal(value, resumed.learner.parameters[name])
    assert run(SMALL, encoder, source, checkpoint=path, **asked).again
    with pytest.raises(UserError, match="checkpoint of another run"):
        run(replace(SMALL, sigma=0.5), encoder, source, checkpoint=path, **asked)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_keeps_the_generation_it_was_pressed_in(
    encoder: Encoder, draw_photos: Callable[..., Path], tmp_path: Path
) -> None:
    def press(step: int, loss: float, accuracy: float, rate: float) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    source, path = resolve_folder(draw_photos(6)), tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(SMALL, encoder, source, checkpoint=path, watch=press, shots=2, seed=1, workers=1)
    assert steps_done(path) == 2

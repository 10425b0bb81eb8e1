from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Source
from cache.errors import UserError
from cache.extract import extract
from cache.identity import Recipe
from cache.models.encoder import Encoder
from cache.prompts import prompt_sets
from cache.store import FeatureStore
from cli import main
from fewshot.endtoend.class_halves import ClassHalves
from fewshot.endtoend.clip import Clip, EndToEnd
from fewshot.endtoend.experiment import Trained, run
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.methods.kgcoop import KgCoOp
from fewshot.endtoend.methods.live_linear_probe import LiveLinearProbe
from fewshot.endtoend.testing import Queries
from fewshot.metrics import harmonic_mean
from fewshot.protocol import Protocol
from fewshot.sampling import Sample, draw
from fewshot.synthesizing import synthesize
from tests.naive_prompts import text_around

COOP = CoOp(n_ctx=2, epochs=2, batch_size=4, lr=0.1)
QUICK = "ship images=3 latent=2 hidden=4 epochs=1"
NAMES = ("blue", "green", "red", "white")


@pytest.fixture
def source(draw_photos: Callable[..., Path]) -> Source:
    """Four classes, three train images of each and two test images."""
    return resolve_folder(draw_photos(6, NAMES))


@pytest.fixture
def store(source: Source, encoder: Encoder, tmp_path: Path) -> FeatureStore:
    prompts = prompt_sets(source.classnames, source.templates)
    extract(source, encoder, Recipe(prompts, views=0), tmp_path / "s.h5")
    return FeatureStore.open(tmp_path / "s.h5")


def trained(encoder: Encoder, source: Source, method: EndToEnd = COOP, **asked: Any) -> Trained:
    return run(method, encoder, source, shots=2, seed=5, setting="base-to-new", **asked)


def context_of(run: Trained) -> Tensor:
    return run.learner.parameters["context"].detach()


def base_rows(source: Source) -> list[int]:
    """The rows that are drawn, without those of new classes."""
    labels = [item.label for item in source.splits["train"]]
    return [int(r) for r in draw(labels, NAMES, shots=2, seed=5).train if labels[r] < 2]


def right(encoder: Encoder, store: FeatureStore, context: Tensor) -> dict[str, float]:
    """The accuracy on each half's test images, among its names alone."""
    features, labels = torch.from_numpy(store.features("test")), store.labels("test")
    found = {}
    for name, half in (("base", range(2)), ("new", range(2, 4))):
        here = np.isin(labels, half)
        text = text_around(encoder, context, [NAMES[k] for k in half])
        said = (features[here] @ text.T).argmax(dim=1).numpy() + half.start
        found[name] = float((said == labels[here]).mean())
    return found


def test_without_features_of_new_classes_it_is_training_on_the_base_classes(
    encoder: Encoder, source: Source, store: FeatureStore
) -> None:
    ours = trained(encoder, source, store=store)
    two = replace(source, classnames=NAMES[:2])
    rows = np.array(base_rows(source))
    drawn = Sample(train=rows, val=None, shots=2, seed=5)
    alone = run(COOP, encoder, two, sample=drawn, store=store)
    assert torch.equal(context_of(ours), context_of(alone))
    assert ours.result.accuracies == pytest.approx(right(encoder, store, context_of(ours)))
    assert ours.result.accuracy == pytest.approx(harmonic_mean(*ours.result.accuracies.values()))
    assert ours.result.n_support == 4
    asked = Protocol(shots=2, seed=5, setting="base-to-new")
    halves = ClassHalves.of(COOP, encoder, source, ours.learner, asked, store)
    assert halves is not None
    assert halves.unseen is not None
    halves.classify(ours.learner, ours.clip, Queries(source, store, 4, 1, lambda n: None))
    assert torch.equal(halves.unseen[0].parameters["context"], context_of(ours))
    live = trained(encoder, source, replace(COOP, epochs=1))
    assert set(live.result.accuracies) == {"base", "new"}


def test_each_step_is_down_the_mean_loss_of_images_and_of_as_many_features_of_new_classes(
    encoder: Encoder, source: Source, store: FeatureStore
) -> None:
    made = synthesize(store, QUICK, shots=2, seed=5).made
    ours = trained(encoder, source, store=store, synthesize=QUICK)
    rows = base_rows(source)
    images = torch.from_numpy(store.features("train", rows))
    labels = torch.tensor([source.splits["train"][row].label for row in rows])
    context = COOP.prompts(Clip.of(encoder), NAMES).context.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([context], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step, rate in enumerate((1e-5, 0.1)):
        torch.manual_seed(5 * 1_000_003 + step)
        picked = torch.randint(len(made.labels), (4,))
        x = torch.cat([normalize(images), made.features[0][picked]])
        y = torch.cat([labels, made.labels[picked]])
        logits = store.logit_scale * x @ text_around(encoder, context, NAMES).T
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        cross_entropy(logits, y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(context_of(ours), context.detach(), atol=1e-4, rtol=1e-3)
    assert set(y.tolist()) - set(labels.tolist()) <= {2, 3}
    assert ours.result.accuracies == pytest.approx(right(encoder, store, context_of(ours)))
    assert ours.result.measures["ship_kl"] == pytest.approx(made.measures["ship_kl"])
    assert ours.result.run.synthesized == QUICK


def test_a_generator_with_a_text_tower_is_trained_where_the_model_is_at_hand(
    encoder: Encoder, source: Source, store: FeatureStore
) -> None:
    words = QUICK.replace("ship", "ship decoder=tower")
    run = trained(encoder, source, replace(KgCoOp(), epochs=1), store=store, synthesize=words)
    assert run.result.run.synthesized == words


BAD: list[tuple[EndToEnd, dict[str, Any], str]] = [
    (replace(COOP, class_specific=True), {}, "coop as it is set learns something for each class"),
    (LiveLinearProbe(head="trained"), {}, "live-linear-probe as it is set learns something"),
    (CLIPLoRA(), {"synthesize": QUICK}, "clip-lora does not learn from synthesized features"),
    (COOP, {"synthesize": QUICK, "store": None}, "learns from stored features, and there are none"),
    (COOP, {"synthesize": "tf-vaegan decoded=true"}, "a space that has no text, and prompts"),
    (COOP, {"setting": "generalized"}, "trained end to end, from few .*; leave generalized out$"),
    (COOP, {"known": 2, "setting": "few-shot"}, "; leave open-set out, or use live-ueo$"),
]


@pytest.mark.parametrize(("method", "asked", "message"), BAD)
def test_what_cannot_know_new_classes_is_refused_before_training(
    encoder: Encoder,
    source: Source,
    store: FeatureStore,
    method: EndToEnd,
    asked: dict[str, Any],
    message: str,
) -> None:
    given: dict[str, Any] = {"setting": "base-to-new", "store": store, **asked}
    with pytest.raises(UserError, match=message):
        run(method, encoder, source, shots=2, seed=5, **given)


def test_three_classes_are_too_few(encoder: Encoder, draw_photos: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="base-to-new needs four classes or more"):
        trained(encoder, resolve_folder(draw_photos(6)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--synthesize", "ship"], "give --base-to-new as well"),
        (["--base-to-new", "--known", "2"], "two settings; give one"),
        (["--base-to-new", "--save", "a.safetensors"], "leave --base-to-new out"),
    ],
)
def test_options_that_exclude_one_another_are_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["train", "coop", "--dataset", "digits", "--model", "tiny", *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_command_prints_both_halves(
    source: Source, random_vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["train", "coop", "--dataset", str(tmp_path / "photos"), "--shots", "2"]
    asked += ["--model", f"local-dir:{random_vit}", "--base-to-new", "--out", str(tmp_path / "o")]
    few = ["--set", "epochs=1", "--set", "n_ctx=1"]
    assert main([*asked, *few]) == 0
    assert [row.split()[-2] for row in capsys.readouterr().out.splitlines()[1:]] == [
        "base", "new", "H"
    ]  # fmt: skip
    assert main([*asked, *few]) == 0
    assert "this run is finished, with this result" in capsys.readouterr().err

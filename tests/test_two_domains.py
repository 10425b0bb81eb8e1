import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Item, Source
from cache.errors import UserError
from cache.models.encoder import Encoder
from cli import main
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.experiment import Trained
from fewshot.endtoend.methods.live_two_stage import LiveTwoStage
from fewshot.endtoend.two_domain_setup import TwoDomainSetup
from fewshot.endtoend.two_domains import run_two_domains, source_checkpoint
from fewshot.open_set import certainty
from fewshot.parts.pseudo_labels import adaptation_loss, centroid_labels
from fewshot.protocol import Protocol
from fewshot.results.prediction_files import read_predictions

FAST = LiveTwoStage(epochs=1, adapt_epochs=1, batch_size=8)


@pytest.fixture
def domains(draw_photos: Callable[..., Path], tmp_path: Path) -> tuple[Source, Source]:
    """Photos of three colors, and the same ones in another folder."""
    photos = draw_photos(6)
    shutil.copytree(photos, tmp_path / "others")
    return resolve_folder(photos), resolve_folder(tmp_path / "others")


def trained(encoder: Encoder, domains: tuple[Source, Source], **asked: Any) -> Trained:
    method = asked.pop("method", FAST)
    return run_two_domains(method, encoder, *domains, shots=2, seed=3, **asked)


def weights(run: Trained) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in run.learner.parameters.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_stage_1_has_smoothed_labels_and_then_a_teacher_that_follows_by_epochs(
    encoder: Encoder,
) -> None:
    method = LiveTwoStage(epochs=5, smoothing=0.2)
    learner = method.attach(Clip.of(encoder), ("ant", "bee"), ("a {}.",))
    assert learner.images is not None
    assert learner.stage is not None
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        f = normalize(encoder.model.encode_image(pixels), dim=1)
        t = normalize(encoder.encode_text(["a ant.", "a bee."]), dim=1)
    logits = float(encoder.identity["logit_scale"]) * f @ t.T
    learner.stage(0, 10)
    plain, ours = learner.loss(learner.images(pixels), labels)
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=1e-4)
    smoothed = 0.8 * torch.nn.functional.one_hot(labels, 2) + 0.1
    expected = -(smoothed * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(plain, expected, atol=1e-4, rtol=1e-4)
    learner.stage(4, 10)  # 40 % of ten steps, of which two are an epoch: the teacher is a copy
    with torch.no_grad():
        learner.parameters["head"].mul_(torch.tensor([[1.0], [-2.0]]))
    taught, ours = learner.loss(learner.images(pixels), labels)
    own = cross_entropy(ours, labels, label_smoothing=0.2)
    torch.testing.assert_close(taught - own, cross_entropy(ours, logits.softmax(dim=1)))
    before = learner.memory["head"].clone()
    learner.stage(5, 10)
    assert torch.equal(learner.memory["head"], before)
    learner.stage(6, 10)
    moved = 0.95 * before + 0.05 * learner.parameters["head"].detach()
    torch.testing.assert_close(learner.memory["head"], moved)


def test_stage_2_keeps_the_head_and_learns_labels_that_it_guessed(encoder: Encoder) -> None:
    clip = Clip.of(encoder)
    method = LiveTwoStage(adapt_epochs=2, push=0.5)
    learned = method.attach(clip, ("ant", "bee"), ("a {}.",))
    seen = 3 * torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    moving = method.adapted(clip, learned, 6, lambda: seen, unknown=True)
    assert set(learned.parameters) - set(moving.parameters) == {"head"}
    assert moving.stage is not None
    moving.stage(0, 4)
    head = normalize(learned.parameters["head"].detach(), dim=1)
    logits = clip.logit_scale * normalize(seen, dim=1) @ head.T
    guessed = centroid_labels(normalize(seen, dim=1), logits.softmax(dim=1))
    sure = certainty(logits)
    assert torch.equal(moving.memory["pseudo"], guessed)
    torch.testing.assert_close(moving.memory["certain"], sure)
    moving.stage(2, 4)  # half of all steps: the margin is 0.1
    sure = torch.tensor([0.55, 0.65, 0.0, 0.0, 0.35, 0.45])
    moving.memory["certain"].copy_(sure)
    rows = torch.tensor([4, 0, 5, 1])
    loss, _ = moving.loss(seen[rows], rows)
    high, low = sure[rows] > 0.6, sure[rows] < 0.4
    expected = adaptation_loss(logits[rows], guessed[rows], high, low, 0.5)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)


def test_images_may_be_unknown_where_the_target_has_classes_of_its_own(
    encoder: Encoder, domains: tuple[Source, Source]
) -> None:
    source, target = domains
    more = replace(target, classnames=(*target.classnames[:-1], "pink"))
    asked = Protocol(shots=2, seed=3, setting="domain-adaptation")
    closed, open_ = (
        TwoDomainSetup.of(
            FAST, asked, encoder, source, here, crop_scale=None, flip=False, save_memory=False
        )
        for here in (target, more)
    )
    assert (closed.unknown, open_.unknown) == (False, True)
    assert closed.run.fixed == {"flip": False}  # so that results with other crops stay apart


def test_stage_2_never_looks_at_the_source_and_resumes(
    encoder: Encoder, domains: tuple[Source, Source], tmp_path: Path
) -> None:
    source, _ = domains
    checkpoint = tmp_path / "c.safetensors"
    before = trained(encoder, domains, checkpoint=checkpoint)
    whole = weights(before)
    again = trained(encoder, domains, checkpoint=checkpoint)
    assert again.again
    assert again.result == before.result
    checkpoint.unlink()
    shutil.rmtree(source.images.root)  # type: ignore[attr-defined]
    assert source_checkpoint(checkpoint).exists()
    assert same(weights(trained(encoder, domains, checkpoint=checkpoint)), whole)


def test_labels_of_the_target_have_no_say_and_its_images_do(
    encoder: Encoder, domains: tuple[Source, Source], tmp_path: Path
) -> None:
    source, target = domains
    turned = {
        split: tuple(Item(item.path, (item.label + 1) % 3) for item in items)
        for split, items in target.splits.items()
    }
    one = trained(encoder, domains, save=tmp_path / "one")
    other = trained(encoder, (source, replace(target, splits=turned)), save=tmp_path / "other")
    assert same(weights(one), weights(other))
    said = [read_predictions(Path(str(run.result.predictions))).predicted for run in (one, other)]
    assert (said[0] == said[1]).all()
    alone = trained(encoder, domains, method=replace(FAST, adapt_epochs=0))
    assert not same(weights(one), weights(alone))
    assert (one.result.run.setting, one.result.run.fitted_on) == ("domain-adaptation", "photos")


def test_a_first_stage_whose_loss_stays_is_complained_about(
    encoder: Encoder, domains: tuple[Source, Source]
) -> None:
    stands_still = replace(FAST, epochs=20, adapt_epochs=0, lr=1e-9)
    assert "the loss did not fall" in trained(encoder, domains, method=stands_still).complaint


def test_other_classes_of_the_target_are_unknown_below_the_threshold(
    encoder: Encoder, domains: tuple[Source, Source]
) -> None:
    source, target = domains
    open_set = replace(target, classnames=("blue", "green", "pink"))
    all_unknown = trained(encoder, (source, open_set), threshold=1.0)
    assert all_unknown.result.accuracies == {"known": 0.0, "unknown": 1.0}
    with pytest.raises(UserError, match="have no class of the same name in common"):
        trained(encoder, (source, replace(target, classnames=("x", "y", "z"))))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["coop", "--source", "digits"], "coop adapts to no other dataset; --source is for"),
        (["two-stage", "--threshold", "0.4"], "--threshold is for domain adaptation"),
        (["two-stage", "--source", "digits", "--known", "2"], "--source excludes --known"),
    ],
)
def test_options_that_exclude_one_another_are_one_line(
    capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    assert main(["train", *command, "--dataset", "digits", "--model", "tiny"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_command_trains_both_stages_and_refuses_to_start_over_a_half_finished_one(
    domains: tuple[Source, Source], random_vit: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = ["train", "two-stage", "--source", str(tmp_path / "photos"), "--shots", "2"]
    command += ["--dataset", str(tmp_path / "others"), "--model", f"local-dir:{random_vit}"]
    command += ["--set", "epochs=1", "--set", "adapt_epochs=1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "domain-adaptation" in capsys.readouterr().out
    [note] = (tmp_path / "out").glob("checkpoints/*.json")
    note.unlink()
    note.with_suffix(".safetensors").unlink()
    assert main(command) == 2
    assert "from an earlier start of this run; continue it with --resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert re.search("continuing after step 1 of .*-source.safetensors", capsys.readouterr().err)

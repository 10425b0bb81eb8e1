import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.methods.dp_bitfit import DPBitFit
from fewshot.endtoend.methods.fine_tuning import BitFit
from fewshot.endtoend.privacy import Privacy, private_gradients
from fewshot.endtoend.train import train
from tests.image_peft import LABELS, attached, pixels


def gradients(learner: Learner, rows: list[int]) -> tuple[dict[str, Tensor], Tensor]:
    """Of the mean loss of some images, and that loss."""
    assert learner.images is not None
    loss, _ = learner.loss(learner.images(pixels()[rows]), LABELS[rows])
    values = torch.autograd.grad(loss, list(learner.parameters.values()))
    return dict(zip(learner.parameters, values, strict=True)), loss.detach()


def private(tower: Clip, learner: Learner, n: int = 4, **how: Any) -> tuple[Tensor, Tensor]:
    images = learner.images
    assert images is not None
    usual: dict[str, Any] = {"clip": 1.0, "noise": 0.0, "expected": 4}
    return private_gradients(
        tower.model, lambda x, y: learner.loss(images(x), y), learner.parameters,
        pixels()[:n], LABELS[:n], draw=np.random.default_rng(0), **{**usual, **how},
    )  # fmt: skip


def test_each_images_gradient_is_clipped_as_a_loop_over_images_does_it(encoder: Encoder) -> None:
    clip, learner = attached(encoder, BitFit(), moved=0.2)
    alone = [gradients(learner, [i])[0] for i in range(4)]
    norms = [math.sqrt(sum(float((g**2).sum()) for g in each.values())) for each in alone]
    bound = sorted(norms)[1] * 1.01  # two are clipped, two are not
    loss, logits = private(clip, learner, clip=bound, expected=5)
    for name, parameter in learner.parameters.items():
        shares = [min(1.0, bound / norm) for norm in norms]
        expected = sum(s * each[name] for s, each in zip(shares, alone, strict=True)) / 5
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(loss, gradients(learner, [0, 1, 2, 3])[1])
    assert logits.shape == (4, 3)


def test_without_noise_and_with_an_infinite_clip_the_step_is_bitfits(encoder: Encoder) -> None:
    clip, learner = attached(encoder, BitFit(), moved=0.2)
    private(clip, learner, clip=math.inf)
    for name, expected in gradients(learner, [0, 1, 2, 3])[0].items():
        torch.testing.assert_close(learner.parameters[name].grad, expected, rtol=1e-4, atol=1e-7)


def test_noise_is_normal_of_so_many_clips_and_all_there_is_without_an_image(
    encoder: Encoder,
) -> None:
    clip, learner = attached(encoder, BitFit())
    loss, _ = private(clip, learner, n=0, clip=0.5, noise=3.0, expected=2)
    drawn = torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None])
    assert len(drawn) == sum(p.numel() for p in learner.parameters.values())
    assert abs(float(drawn.std()) / (3.0 * 0.5 / 2) - 1) < 5 / math.sqrt(2 * len(drawn))
    assert abs(float(drawn.mean())) < 5 * 0.75 / math.sqrt(len(drawn))
    assert float(loss) == 0.0


def test_each_image_is_in_a_step_with_the_same_probability_whatever_the_others_are() -> None:
    privacy = Privacy(8.0, 0.1, 1.0, n_images=4, batch_size=1, steps=1, repeatable=True)
    there = torch.zeros(2000, 4)
    for step in range(2000):
        there[step, privacy.rows(1, step)] = 1.0
    counts = there.sum(dim=0)
    assert float((counts - 500).abs().max()) < 5 * math.sqrt(2000 * 0.25 * 0.75)
    sizes = torch.bincount(there.sum(dim=1).long(), minlength=5)  # binomial, 0 to 4 of 4
    for k in range(5):
        p = math.comb(4, k) * 0.25**k * 0.75 ** (4 - k)
        assert abs(int(sizes[k]) - 2000 * p) < 5 * math.sqrt(2000 * p)


def test_noise_is_the_systems_unless_it_is_to_be_repeatable() -> None:
    def drawn(repeatable: bool, step: int = 3) -> list[float]:
        privacy = Privacy(8.0, 0.1, 1.0, 4, 2, 10, repeatable)
        values: list[float] = privacy.draw(1, step, 1).standard_normal(3).tolist()
        return values

    assert drawn(True) == drawn(True) != drawn(True, step=4)
    assert drawn(False) != drawn(False)


def test_the_account_is_that_of_opacus() -> None:
    accountants = pytest.importorskip("opacus.accountants")
    privacy = Privacy(epsilon=3.0, delta=1e-3, clip=1.0, n_images=100, batch_size=20, steps=50)
    spent = privacy.account()
    ledger = accountants.RDPAccountant()
    for _ in range(50):
        ledger.step(noise_multiplier=privacy.noise, sample_rate=0.2)
    assert spent["epsilon"] == pytest.approx(ledger.get_epsilon(delta=1e-3))
    assert 2.9 < spent["epsilon"] <= 3.0
    assert (spent["delta"], spent["sample_rate"], spent["private_steps"]) == (1e-3, 0.2, 50)
    assert spent["noise_multiplier"] == privacy.noise
    known = replace(privacy, repeatable=True).account()  # to all who know the seed
    assert "epsilon" not in known
    assert "delta" not in known


def test_training_with_privacy_learns_and_repeats_where_it_is_to(encoder: Encoder) -> None:
    pytest.importorskip("opacus")
    method = DPBitFit(
        iterations_per_shot=10, epsilon=500.0, delta=0.25, batch_size=3, lr=1e-2, repeatable=True
    )
    ends = []
    for _ in range(2):
        clip, learner = attached(encoder, method)
        assert learner.images is not None
        before = float(learner.loss(learner.images(pixels()), LABELS)[0].detach())
        train(
            learner, clip, method.plan(2, 4), method.optimizer(learner),
            lambda rows, epoch: pixels()[rows], LABELS, seed=1,
        )  # fmt: skip
        after = float(learner.loss(learner.images(pixels()), LABELS)[0].detach())
        assert after < before
        ends.append(after)
    assert ends[0] == ends[1]


def test_without_the_package_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants.utils", None)
    with pytest.raises(UserError, match=r"pip install 'fewshot-clip\[private\]'"):
        _ = Privacy(3.0, 1e-3, 1.0, 100, 20, 50).noise


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"epsilon": 0.0}, "epsilon must be more than 0"),
        ({"delta": 1.0}, "delta must be 0 or more and less than 1"),
        ({"head": "trained"}, "head=trained; use frozen"),
        ({"towers": "both"}, "image tower only"),
    ],
)
def test_what_it_cannot_keep_private_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        DPBitFit(**settings)


def test_delta_is_one_over_the_images_unless_it_is_given() -> None:
    privacy = DPBitFit().plan(4, 40).privacy
    assert privacy is not None
    assert (privacy.delta, privacy.rate, privacy.batch_size) == (1 / 40, 1.0, 40)
    given = DPBitFit(delta=1e-5, batch_size=10).plan(4, 40).privacy
    assert given is not None
    assert (given.delta, given.rate) == (1e-5, 0.25)

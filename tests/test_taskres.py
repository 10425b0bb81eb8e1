import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import SupportSet, ZeroShot, configure
from fewshot.methods.taskres import TaskRes
from fewshot.text import Text
from tests.test_enhanced_base import DIM, N_CLASSES, WIDTH, adam, task

SMALL = TaskRes(alpha=0.7, lr=0.02, weight_decay=0.05, epochs=6, batch_size=8, logit_scale=30.0)


def unit(x: Tensor) -> Tensor:
    norms: Tensor = x.norm(dim=-1, keepdim=True)
    return x / norms


def reference(
    method: TaskRes, support: SupportSet, t: Tensor, query: Tensor, epochs: int
) -> Tensor:
    """The paper's logits after training in double precision, by updates written out."""
    t = t.double()
    of_text, of_images = torch.zeros_like(t), torch.zeros_like(t[0])
    alpha = torch.tensor(method.alpha).double()
    parameters = [of_text] if method.residual in ("text", "both") else []
    parameters += [of_images] if method.residual in ("image", "both") else []
    parameters += [alpha] if method.learn_alpha else []
    for parameter in parameters:
        parameter.requires_grad_()

    def logits(f: Tensor) -> Tensor:
        moved = [unit(t[k] + alpha * of_text[k]) for k in range(len(t))]
        f = unit(method.norm * f + alpha * of_images)
        return torch.stack([method.logit_scale * f @ k for k in moved], dim=1)

    adam(
        parameters, logits, support, lr=method.lr, decay=method.weight_decay, epochs=epochs,
        batch_size=method.batch_size, seed=method.seed,
    )  # fmt: skip
    return logits(query.double()).detach()


@pytest.mark.parametrize("residual", ["text", "image", "both"])
@pytest.mark.parametrize("learn_alpha", [False, True])
@pytest.mark.parametrize(("n_views", "batch_size"), [(0, 8), (4, 100)])
def test_training_is_the_papers(
    residual: Any, learn_alpha: bool, n_views: int, batch_size: int
) -> None:
    support, text, query = task(n_views=n_views)
    method = replace(
        SMALL, residual=residual, learn_alpha=learn_alpha, batch_size=batch_size, seed=3, norm=6.0
    )
    expected = reference(method, support, text.features, query, epochs=6)
    logits = method.fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)
    zero_shot = 30 * query @ unit(text.features).T
    assert not torch.allclose(logits, zero_shot, atol=0.05)


@pytest.mark.parametrize(("shots", "epochs"), [(4, 100), (5, 200)])
def test_the_published_epochs_go_by_the_shots(shots: int, epochs: int) -> None:
    support, text, query = task(shots)
    method = replace(SMALL, batch_size=256)
    torch.testing.assert_close(
        replace(method, epochs="published").fit(support, text).logits(query),
        replace(method, epochs=epochs).fit(support, text).logits(query),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("residual", ["text", "image", "both"])
@pytest.mark.parametrize("setting", [{"alpha": 0.0}, {"epochs": 0}])
def test_without_alpha_or_epochs_it_is_zero_shot(residual: Any, setting: dict[str, Any]) -> None:
    support, text, query = task()
    classifier = replace(SMALL, residual=residual, **setting).fit(support, text)
    expected = ZeroShot(30.0).fit(None, Text(unit(text.features))).logits(query)
    torch.testing.assert_close(classifier.logits(query), expected)
    assert classifier.stats["residual_size"] == 0


def test_unit_text_is_trained_as_if_it_had_the_usual_norm() -> None:
    support, text, query = task()
    direction = unit(text.features)
    torch.testing.assert_close(
        replace(SMALL, norm=9.0).fit(support, Text(direction)).logits(query),
        replace(SMALL, norm=1.5).fit(support, Text(9 * direction)).logits(query),
        rtol=1e-4,
        atol=1e-4,
    )
    assert not torch.allclose(
        replace(SMALL, norm=9.0).fit(support, Text(direction)).logits(query),
        replace(SMALL, norm=1.5).fit(support, Text(direction)).logits(query),
        atol=0.05,
    )


def test_means_of_unit_prompts_keep_what_their_norms_tell_of_one_another() -> None:
    support, text, query = task()
    shorter = text.features / 12  # norms of 7 / 12 to 11 / 12, 9 / 12 on average
    torch.testing.assert_close(
        replace(SMALL, norm=9.0).fit(support, Text(shorter)).logits(query),
        SMALL.fit(support, text).logits(query),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("residual", ["text", "image"])
def test_the_enhanced_base_is_the_residuals_on_text_of_the_tuned_projection(residual: Any) -> None:
    support, text, query = task()
    assert text.projection is not None
    assert text.pooled is not None
    method = replace(SMALL, residual=residual, base="enhanced", base_lr=5e-3, base_epochs=7)
    projection = text.projection.double().requires_grad_()
    pooled = text.pooled.double()
    adam(
        [projection], lambda f: 30 * f @ unit(pooled @ projection).T, support, lr=5e-3, decay=0.05,
        epochs=7, batch_size=8, seed=1,
    )  # fmt: skip
    base = (pooled @ projection).detach()
    expected = reference(method, support, base, query, epochs=6)
    classifier = method.fit(support, text)
    torch.testing.assert_close(classifier.logits(query).double(), expected, rtol=2e-4, atol=2e-4)
    assert not torch.allclose(expected.float(), SMALL.fit(support, text).logits(query), atol=0.05)
    residuals = DIM if residual == "image" else N_CLASSES * DIM
    assert classifier.stats["trained_parameters"] == residuals + WIDTH * DIM


@pytest.mark.parametrize("base", ["regular", "enhanced"])
def test_the_images_residual_serves_classes_without_images(base: Any) -> None:
    support, text, query = task()
    method = replace(SMALL, residual="image", base=base, base_lr=5e-3)
    whole = method.fit(support, text).logits(query)
    order = torch.tensor([3, 0])
    new = method.fit_new_classes(support, text, text.classes(order))
    torch.testing.assert_close(new.logits(query), whole[:, order], rtol=1e-4, atol=1e-4)
    assert new.stats == method.fit(support, text).stats


@pytest.mark.parametrize("residual", ["text", "both"])
def test_a_residual_of_text_serves_no_class_without_images(residual: Any) -> None:
    support, text, _ = task()
    with pytest.raises(UserError, match=f"taskres with residual {residual} .* use residual image"):
        replace(SMALL, residual=residual).fit_new_classes(support, text, text)


def test_measures_tell_how_many_numbers_were_trained_and_how_far_the_text_moved() -> None:
    support, text, _ = task()
    counts: dict[Any, int] = {"text": N_CLASSES * DIM, "image": DIM, "both": (N_CLASSES + 1) * DIM}
    for residual, count in counts.items():
        for learn_alpha in (False, True):
            method = replace(SMALL, residual=residual, learn_alpha=learn_alpha)
            stats = method.fit(support, text).stats
            assert stats["trained_parameters"] == count + learn_alpha
    # With one step of Adam from zero, of a rate of 1e-5, each component is off by the rate.
    stats = replace(SMALL, epochs=1, batch_size=100).fit(support, text).stats
    moved = 0.7 * 1e-5 * math.sqrt(DIM)
    expected = float((moved / text.features.norm(dim=1)).mean())
    assert stats["residual_size"] == pytest.approx(expected, rel=1e-2)
    stats = replace(SMALL, epochs=1, residual="image", norm=5.0).fit(support, text).stats
    assert 0.5 < stats["residual_size"] / (2 * moved / 5) <= 1.01  # two steps of eight images


@pytest.mark.parametrize("base", ["regular", "enhanced"])
def test_without_text_it_says_that_it_needs_some(base: Any) -> None:
    support, _, _ = task()
    with pytest.raises(UserError, match=r"^taskres.* needs text"):
        TaskRes(base=base).fit(support, None)


def test_an_enhanced_base_without_pooled_text_asks_for_a_new_extraction() -> None:
    support, text, _ = task()
    with pytest.raises(UserError, match=r"taskres with an enhanced base needs .* extract it again"):
        TaskRes(base="enhanced").fit(support, Text(text.features))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "alpha must be 0 or more; got -0.1"),
        ({"alpha": math.nan}, "alpha must be 0 or more; got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"base_epochs": -1}, "base_epochs must be a whole number, 0 or more"),
        ({"lr": 0.0}, "lr must be more than 0"),
        ({"base_lr": 0.0}, "base_lr must be more than 0"),
        ({"norm": 0.0}, "norm must be more than 0"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more"),
        ({"epochs": -1}, "epochs must be a whole number, 0 or more, or published; got -1"),
        ({"epochs": "publishd"}, "unknown epochs 'publishd'; did you mean 'published'"),
        ({"residual": "txt"}, "unknown residual 'txt'; did you mean 'text'"),
        ({"base": "strong"}, "unknown base 'strong'"),
    ],
)
def test_hyper_parameters_outside_their_range_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        TaskRes(**settings)


def test_epochs_are_a_number_or_published_on_the_command_line() -> None:
    assert configure("taskres", {"epochs": "7"}) == TaskRes(epochs=7)
    assert configure("taskres", {"epochs": "published"}) == TaskRes()


def test_the_published_recipe_reaches_what_is_published_on_ucf101(shared: Path) -> None:
    real = np.load(shared / "features" / "ucf101_openai_vitb16.npz")
    names = ("train16_x", "test_x", "text")
    train, query, text = (normalize(torch.from_numpy(real[n]).float()) for n in names)
    support = SupportSet(train, torch.from_numpy(real["train16_y"]), len(text))
    predicted = TaskRes().fit(support, Text(text)).logits(query).argmax(dim=1)
    assert (predicted == torch.from_numpy(real["test_y"])).double().mean() >= 0.833

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import SupportSet
from fewshot.methods.tip_adapter import TipAdapter
from fewshot.methods.tip_x import TipX
from fewshot.text import Text
from tests.toys import task

N_CLASSES = 5


def naive_logits(method: TipX, support: SupportSet, text: Text, query: Tensor) -> Tensor:
    """Pair by pair in double precision; phi from all pairs of a crop and a key of the support."""
    t = text.features.double()
    keys = support.features if support.views is None else normalize(support.views.mean(dim=0))
    keys = keys.double()

    def distribution(f: Tensor) -> Tensor:
        return (t @ f / method.temperature).softmax(dim=0)

    def divergence(f: Tensor, key: Tensor) -> float:
        p, q = distribution(f), distribution(key)
        return float(sum(p[c] * math.log(p[c] / q[c]) for c in range(N_CLASSES)))

    crops = support.features.double()
    least = min(float(f @ key) for f in crops for key in keys)
    largest = max(divergence(f, key) for f in crops for key in keys)
    logits = torch.zeros(len(query), N_CLASSES, dtype=torch.float64)
    for m, f in enumerate(query.double()):
        logits[m] = method.logit_scale * t @ f
        for key, label in zip(keys, support.labels, strict=True):
            likeness = 1 - (1 - least) * divergence(f, key) / largest
            logits[m, label] += method.alpha * math.exp(-method.beta * (1 - float(f @ key)))
            logits[m, label] += method.gamma * likeness
    return logits


@pytest.mark.parametrize("n_views", [0, 3])
@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_the_logits_are_the_papers_key_by_key(temperature: float, n_views: int) -> None:
    support, text, query = task(N_CLASSES, n_views=n_views, left_out=2)
    method = TipX(2.0, 4.0, 3.0, temperature, logit_scale=30.0)
    expected = naive_logits(method, support, text, query)
    logits = method.fit(support, text).logits(query)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)


def test_the_scale_does_not_depend_on_how_many_rows_a_block_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    support, text, query = task(N_CLASSES, n_views=2, left_out=2)
    whole = TipX().fit(support, text).logits(query)
    monkeypatch.setattr("fewshot.parts.divergence_votes.KEYS", 5 * len(support.labels))
    monkeypatch.setattr("fewshot.parts.divergence_votes.QUERIES", 1)
    torch.testing.assert_close(TipX().fit(support, text).logits(query), whole)


def test_gamma_zero_is_tip_adapter() -> None:
    support, text, query = task(N_CLASSES, left_out=2)
    torch.testing.assert_close(
        TipX(2.0, 3.0, 0.0).fit(support, text).logits(query),
        TipAdapter(2.0, 3.0).fit(support, text).logits(query),
    )


def test_where_all_images_look_alike_every_vote_by_divergence_is_one() -> None:
    support, text, query = task(N_CLASSES, left_out=2)
    same = Text(text.features[:1].expand(N_CLASSES, -1))  # the class distributions are uniform
    logits = TipX(0.0, 1.0, 2.0, logit_scale=0.0).fit(support, same).logits(query)
    torch.testing.assert_close(logits, (2.0 * support.counts).expand(40, -1))


def test_a_sweep_over_scoring_and_temperature_equals_fitting_each() -> None:
    support, text, query = task(N_CLASSES, n_views=2, left_out=2)
    grid = {
        "gamma": (0.0, 3.0),
        "temperature": (0.5, 0.1),
        "beta": (1.0, 6.0),
        "alpha": (0.5, 4.0),
    }
    swept = list(TipX().sweep(grid, support, text, query))
    assert len({method for method, _ in swept}) == 16
    for method, logits in swept:
        expected = method.fit(support, text).logits(query)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)


def test_it_says_that_it_needs_text() -> None:
    with pytest.raises(UserError, match="tip-x needs text features"):
        TipX().fit(task(N_CLASSES, left_out=2)[0], None)


@pytest.mark.parametrize("field", ["alpha", "beta", "gamma"])
def test_weights_and_sharpness_below_zero_are_refused(field: str) -> None:
    with pytest.raises(UserError, match=rf"{field} must be 0 or more; got -1"):
        TipX(**{field: -1.0})


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"temperature must be more than 0; got 0"):
        TipX(temperature=0.0)

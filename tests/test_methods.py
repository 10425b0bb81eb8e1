"""What every method must hold to, whatever it does inside."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import METHODS, NearestMean, SupportSet, ZeroShot
from fewshot.classifier import Method, variants
from fewshot.tuning import sweep

N_CLASSES = 5


def vectors(seed: int, *shape: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def task(shots: int = 4, dim: int = 16, n_views: int = 0) -> tuple[SupportSet, Tensor]:
    """A support set about class centres, and text about the same centres."""
    centres = vectors(0, N_CLASSES, dim)
    labels = torch.arange(N_CLASSES).repeat(shots)
    features = normalize(centres[labels] + 0.8 * vectors(1, len(labels), dim))
    views = normalize(features + 0.3 * vectors(2, n_views, len(labels), dim), dim=-1)
    text = normalize(centres + 0.8 * vectors(3, N_CLASSES, dim))
    return SupportSet(features, labels, N_CLASSES, views if n_views else None), text


QUERY = vectors(4, 30, 16)

every_method = pytest.mark.parametrize("method", [m() for m in METHODS.values()], ids=METHODS)
LEARNERS = [method() for method in METHODS.values() if method is not ZeroShot]
with_and_without_views = pytest.mark.parametrize("n_views", [0, 3])


def logits(method: Method, support: SupportSet, text: Tensor | None) -> Tensor:
    dim = support.features.shape[1]
    return method.fit(support, text).logits(QUERY if dim == 16 else vectors(4, 30, dim))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_listed_under_its_own_name(name: str) -> None:
    assert METHODS[name].name == name


@every_method
def test_the_grid_names_fields_and_holds_no_value_twice(method: Method) -> None:
    names = {field.name for field in fields(method)}
    for field, values in method.grid.items():
        assert field in names
        assert len(set(values)) == len(values)


@every_method
@with_and_without_views
def test_there_is_one_float32_logit_per_class(method: Method, n_views: int) -> None:
    result = logits(method, *task(n_views=n_views))
    assert result.shape == (30, N_CLASSES)
    assert result.dtype == torch.float32


@every_method
def test_the_order_of_the_support_set_does_not_matter(method: Method) -> None:
    support, text = task()
    shuffled = support.subset(torch.randperm(20, generator=torch.Generator().manual_seed(5)))
    torch.testing.assert_close(logits(method, shuffled, text), logits(method, support, text))


@every_method
def test_renaming_the_classes_permutes_the_columns(method: Method) -> None:
    support, text = task()
    order = torch.tensor([3, 0, 4, 1, 2])  # class k becomes the place of k in this order
    renamed = SupportSet(support.features, torch.argsort(order)[support.labels], N_CLASSES)
    torch.testing.assert_close(
        logits(method, renamed, text[order]), logits(method, support, text)[:, order]
    )


@every_method
@with_and_without_views
def test_fitting_changes_nothing_it_was_given(method: Method, n_views: int) -> None:
    support, text = task(n_views=n_views)
    before = [text.clone(), support.features.clone(), support.labels.clone()]
    views = None if support.views is None else support.views.clone()
    query = QUERY.clone()
    for _ in sweep(method, method.grid, support, text, query):
        pass
    method.fit(support, text).logits(query)
    after = [text, support.features, support.labels]
    for old, new in zip([*before, QUERY], [*after, query], strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)
    if views is not None:
        torch.testing.assert_close(support.views, views, rtol=0, atol=0)


@every_method
def test_the_same_input_gives_the_same_bits(method: Method) -> None:
    assert torch.equal(logits(method, *task()), logits(method, *task()))


@every_method
@with_and_without_views
@pytest.mark.parametrize(("shots", "dim"), [(1, 16), (1, 64), (2, 64), (16, 8)])
def test_logits_are_finite_at_one_shot_and_with_more_dimensions_than_samples(
    method: Method, shots: int, dim: int, n_views: int
) -> None:
    assert torch.isfinite(logits(method, *task(shots, dim, n_views))).all()


@pytest.mark.parametrize("method", LEARNERS, ids=lambda method: method.name)
@pytest.mark.parametrize("dim", [16, 64])
def test_the_support_set_teaches_its_own_labels(method: Method, dim: int) -> None:
    support, text = task(dim=dim)
    predicted = method.fit(support, text).logits(support.features).argmax(dim=1)
    assert (predicted == support.labels).double().mean() > 0.9


@pytest.mark.parametrize(
    ("method", "with_text"),
    [(method, True) for method in (ZeroShot(), *LEARNERS)] + [(m, False) for m in LEARNERS],
    ids=lambda value: value if isinstance(value, bool) else value.name,
)
@with_and_without_views
@pytest.mark.parametrize("dim", [16, 64])
def test_sweeping_equals_fitting_each_candidate(
    method: Method, dim: int, with_text: bool, n_views: int
) -> None:
    support, text = task(dim=dim, n_views=n_views)
    query = vectors(4, 30, dim)
    given = text if with_text else None
    swept = list(sweep(method, method.grid, support, given, query))
    assert [variant for variant, _ in swept] == list(variants(method, method.grid))
    for variant, result in swept:
        expected = variant.fit(support, given).logits(query)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-3)


@every_method
def test_the_logit_scale_multiplies_what_the_text_says(method: Method) -> None:
    support, text = task()
    # Weight of the text is the only place for it: doubled, it moves logits by the same again.
    steps = [
        logits(replace(method, logit_scale=scale), support, text) for scale in (0.0, 50.0, 100.0)
    ]
    torch.testing.assert_close(steps[2] - steps[1], steps[1] - steps[0], rtol=1e-4, atol=1e-3)
    assert not torch.allclose(steps[2], steps[0])


def test_zero_shot_is_the_scaled_cosine_to_the_text() -> None:
    _, text = task()
    torch.testing.assert_close(ZeroShot(50.0).fit(None, text).logits(QUERY), 50 * QUERY @ text.T)


def test_zero_shot_says_that_it_needs_text() -> None:
    with pytest.raises(UserError, match="zero-shot needs text features and there are none"):
        ZeroShot().fit(None, None)


def test_nearest_mean_is_the_cosine_to_the_mean_of_the_images() -> None:
    support, text = task()
    means = torch.stack([support.features[support.labels == k].mean(0) for k in range(N_CLASSES)])
    cosines = QUERY @ (means / means.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(logits(NearestMean(), support, None), 100 * cosines)
    torch.testing.assert_close(logits(NearestMean(), support, text), 100 * cosines)


def test_nearest_mean_averages_all_views_of_a_class() -> None:
    support, _ = task(n_views=3)
    assert support.views is not None
    means = [support.views[:, support.labels == k].mean(dim=(0, 1)) for k in range(N_CLASSES)]
    cosines = QUERY @ normalize(torch.stack(means)).T
    torch.testing.assert_close(logits(NearestMean(), support, None), 100 * cosines)


def test_nearest_mean_at_full_text_weight_is_zero_shot() -> None:
    support, text = task()
    torch.testing.assert_close(
        logits(NearestMean(text_weight=1.0), support, text),
        ZeroShot().fit(None, text).logits(QUERY),
    )


def test_nearest_mean_with_half_the_text_lies_between_the_two() -> None:
    support, text = task()
    means = torch.stack([support.features[support.labels == k].mean(0) for k in range(N_CLASSES)])
    prototypes = normalize(normalize(means) + text)
    torch.testing.assert_close(
        logits(NearestMean(text_weight=0.5), support, text), 100 * QUERY @ prototypes.T
    )


def test_nearest_mean_needs_text_only_where_it_has_a_weight() -> None:
    support, _ = task()
    with pytest.raises(UserError, match=r"nearest-mean with text_weight 0.5 needs text"):
        NearestMean(text_weight=0.5).fit(support, None)


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_a_text_weight_outside_its_range_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match=r"text_weight must be 0 to 1"):
        NearestMean(text_weight=weight)

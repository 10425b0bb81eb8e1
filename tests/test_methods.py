"""What every method must hold to, whatever it does inside."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import METHODS, SupportSet, classify, configure
from fewshot.abilities import SupportsNewClasses
from fewshot.method import Method, variants
from fewshot.methods.linear_probe import LinearProbe
from fewshot.text import Text
from tests.toy_adapters import fitted_classifier
from tests.toys import vectors

N_CLASSES = 5
N_PROMPTS = 3

# Methods whose logits are not linear in the logit scale, each with the reason; beside those that
# are trained, through a softmax of logits that have the scale in them.
NOT_LINEAR_IN_THE_LOGIT_SCALE = {
    "stack": "its weights follow from zero-shot's log-loss",
    "gda-em": "its responsibilities are a softmax of the text's logits",
    "ueo": "its entropies are of a softmax of the text's logits",
    "transclip": "its guesses at labels start from a softmax of the text's logits",
}

# Methods to which it matters in which order the classes are named.
MINDS_THE_NAMES = {"refiner": "its first weights are drawn class by class, as the authors' are"}

# Of methods that not every setting lets classify classes without images, one that does.
GENERALIZING: dict[str, dict[str, Any]] = {"taskres": {"residual": "image"}}


@dataclass(frozen=True, eq=False)
class Task:
    """Images about class centers, text about the same centers, and a query."""

    support: SupportSet
    text: Text
    query: Tensor


def task(
    method: Method,
    shots: int = 4,
    dim: int = 16,
    n_views: int = 0,
    n_classes: int = N_CLASSES,
    left_out: int = 0,
) -> Task:
    """A task in the form that the method needs: norms and text recipe.

    The last classes have an image less each, as many of them as are `left_out`.
    """
    centers = vectors(0, n_classes, dim)
    labels = torch.arange(n_classes).repeat(shots)
    labels = labels[: len(labels) - left_out]
    features = normalize(centers[labels] + 0.8 * vectors(1, len(labels), dim))
    views = normalize(features + 0.3 * vectors(2, n_views, len(labels), dim), dim=-1)
    query = vectors(4, 30, dim)
    if not method.unit_norm:
        norms = 10 + 2 * torch.rand(
            n_views + 1, len(labels), 1, generator=torch.Generator().manual_seed(6)
        )
        features, views, query = norms[0] * features, norms[1:] * views, 11 * query
    support = SupportSet(
        features, labels, n_classes, views if n_views else None, unit_norm=method.unit_norm
    )
    return Task(support, class_text(centers, method.text_recipe), query)


def class_text(centers: Tensor, recipe: str) -> Text:
    """Three prompts about each center, their mean, and what a text tower made of them."""
    n_classes, dim = centers.shape
    labels = torch.arange(n_classes).repeat_interleave(N_PROMPTS)
    prompts = normalize(centers[labels] + 0.8 * vectors(3, len(labels), dim))
    raw = 9 * torch.stack([prompts[labels == k].mean(dim=0) for k in range(n_classes)])
    projection = vectors(5, dim + 4, dim)
    pooled = torch.linalg.lstsq(projection.T.double(), raw.T.double()).solution.T.float()
    features = raw if recipe == "raw-mean" else normalize(raw)
    return Text(features, prompts, labels, pooled, projection)


def tensors(*given: object) -> Iterator[Tensor]:
    """Every tensor in the fields of these."""
    for one in given:
        if isinstance(one, Tensor):
            yield one
        else:
            yield from (v for v in vars(one).values() if isinstance(v, Tensor))


def brisk(method: Method) -> Method:
    """The method with a short training, which does for what does not ask how good it gets."""
    if "epochs" not in {field.name for field in fields(method)}:
        return method
    epochs: int | str = method.epochs  # type: ignore[attr-defined]
    return replace(method, epochs=6 if isinstance(epochs, str) else min(epochs, 6))


def whole_batch(method: Method) -> Method:
    """The method with all images in one batch: which are beside which is then no matter."""
    known = {field.name for field in fields(method)}
    return replace(method, batch_size=10_000) if "batch_size" in known else method


def is_trained(method: Method) -> bool:
    """Whether gradients moved anything, by what the classifier says."""
    given = task(method)
    return "trained_parameters" in method.fit(given.support, given.text).stats


def assert_alike(method: Method, actual: Tensor, expected: Tensor) -> None:
    """Equal but for rounding, which training repeats hundreds of times; logits reach a hundred."""
    rtol, atol = (1e-3, 2e-2) if is_trained(method) else (1e-4, 1e-3)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def logits(method: Method, given: Task, text: Text | None) -> Tensor:
    return method.fit(given.support, text).logits(given.query)


def refused_without_text(method: Method, given: Task) -> str | None:
    """What the method says where there is no text; None where it can do without."""
    try:
        method.fit(given.support, None)
    except UserError as error:
        return str(error)
    return None


DEFAULTS: list[Method] = [m() for m in METHODS.values()]
LABELS = [m for m in DEFAULTS if m.learns_from in ("labels", "labels or text")]


def parametrized(methods: list[Method]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


every_method = parametrized([brisk(m) for m in DEFAULTS])
with_and_without_views = pytest.mark.parametrize("n_views", [0, 3])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_listed_under_its_own_name(name: str) -> None:
    assert METHODS[name].name == name


@every_method
def test_the_grid_names_fields_and_holds_no_value_twice(method: Method) -> None:
    names = {field.name for field in fields(method)}
    for field, values in method.grid.items():
        assert field in names
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_can_be_given_as_text(name: str) -> None:
    method = METHODS[name]()
    for field in fields(method):
        value = getattr(method, field.name)
        assert configure(name, {field.name: str(value)}) == method, field.name


@every_method
@with_and_without_views
def test_there_is_one_float32_logit_per_class_and_no_gradient_hangs_on_it(
    method: Method, n_views: int
) -> None:
    given = task(method, n_views=n_views)
    result = logits(method, given, given.text)
    assert result.shape == (30, N_CLASSES)
    assert result.dtype == torch.float32
    assert not result.requires_grad


@parametrized(
    [
        replace(m, **GENERALIZING.get(m.name, {}))
        for m in DEFAULTS
        if isinstance(m, SupportsNewClasses)
    ]
)
@with_and_without_views
def test_classes_without_images_get_one_logit_each(method: Method, n_views: int) -> None:
    assert isinstance(method, SupportsNewClasses)
    given = task(method, n_views=n_views)
    new = class_text(vectors(50, 3, 16), method.text_recipe)
    result = method.fit_new_classes(given.support, given.text, new).logits(given.query)
    assert result.shape == (30, 3)
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert torch.isfinite(result).all()


@every_method
def test_the_order_of_the_support_set_does_not_matter(method: Method) -> None:
    method = whole_batch(method)
    given = task(method)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    shuffled = replace(given, support=given.support.subset(order))
    expected = logits(method, given, given.text)
    assert_alike(method, logits(method, shuffled, given.text), expected)


@every_method
def test_renaming_the_classes_permutes_the_columns(method: Method) -> None:
    if method.name in MINDS_THE_NAMES:
        pytest.skip(MINDS_THE_NAMES[method.name])
    method = whole_batch(method)
    given = task(method)
    order = torch.tensor([3, 0, 4, 1, 2])  # class k becomes the place of k in this order
    support = replace(given.support, labels=torch.argsort(order)[given.support.labels])
    renamed = logits(method, replace(given, support=support), given.text.classes(order))
    expected = logits(method, given, given.text)[:, order]
    assert_alike(method, renamed, expected)


@every_method
@with_and_without_views
def test_fitting_changes_nothing_it_was_given(method: Method, n_views: int) -> None:
    given = task(method, n_views=n_views)
    before = [t.clone() for t in tensors(given.support, given.text, given.query)]
    for _ in method.sweep(method.grid, given.support, given.text, given.query):
        pass
    logits(method, given, given.text)
    after = list(tensors(given.support, given.text, given.query))
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)


@every_method
@with_and_without_views
def test_the_same_input_gives_the_same_bits_and_no_other_random_numbers_are_drawn(
    method: Method, n_views: int
) -> None:
    given = task(method, n_views=n_views)
    torch.manual_seed(1)
    first = logits(method, given, given.text)
    torch.manual_seed(2)
    state, other = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(logits(method, given, given.text), first)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_equal(np.random.get_state(), other)  # noqa: NPY002


@every_method
@with_and_without_views
@pytest.mark.parametrize(
    ("shots", "dim", "n_classes", "left_out"),
    [(1, 16, 5, 0), (1, 64, 5, 0), (2, 64, 5, 3), (16, 8, 5, 0), (6, 16, 5, 14), (2, 16, 2, 1)],
)
def test_logits_are_finite_at_one_shot_two_classes_unequal_classes_and_many_dimensions(
    method: Method, shots: int, dim: int, n_classes: int, left_out: int, n_views: int
) -> None:
    given = task(method, shots, dim, n_views, n_classes, left_out)
    result = logits(method, given, given.text)
    assert result.shape == (30, n_classes)
    assert torch.isfinite(result).all()


@parametrized(LABELS)
@pytest.mark.parametrize("dim", [16, 64])
def test_the_support_set_teaches_its_own_labels(method: Method, dim: int) -> None:
    given = task(method, dim=dim)
    classifier = method.fit(given.support, given.text)
    predicted = classifier.logits(given.support.features).argmax(dim=1)
    assert (predicted == given.support.labels).double().mean() > 0.9


@every_method
def test_what_learns_from_no_labels_needs_none(method: Method) -> None:
    given = task(method)
    if method.learns_from == "labels":
        pytest.skip("it learns from labels")
    images = given.support.features if method.learns_from == "images" else None
    result = method.fit_unlabeled(images, given.text).logits(given.query)
    assert result.shape == (30, N_CLASSES)
    assert torch.isfinite(result).all()
    if method.learns_from in ("text", "images"):
        torch.testing.assert_close(result, logits(method, given, given.text), rtol=0, atol=0)


@every_method
def test_only_a_transductive_method_minds_which_images_are_beside_one(method: Method) -> None:
    given = task(method)
    classifier = method.fit(given.support, given.text)
    together, alone = classifier.logits(given.query)[:7], classifier.logits(given.query[:7])
    if method.transductive:
        assert not torch.allclose(together, alone, rtol=1e-4, atol=1e-3)
    else:
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


@every_method
def test_without_text_a_method_works_or_says_that_it_needs_text(method: Method) -> None:
    given = task(method)
    refusal = refused_without_text(method, given)
    if refusal:
        assert refusal.startswith(method.name)
        assert "needs text" in refusal
    else:
        assert torch.isfinite(logits(method, given, None)).all()


@every_method
def test_measures_are_finite_numbers_and_count_what_was_trained(method: Method) -> None:
    given = task(method)
    stats = method.fit(given.support, given.text).stats
    for value in stats.values():
        assert np.isfinite(float(value))
    assert stats.get("trained_parameters", 1) >= 1
    if "epochs" in {field.name for field in fields(method)}:
        assert "trained_parameters" in stats


@every_method
@with_and_without_views
@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize("dim", [16, 64])
def test_sweeping_equals_fitting_each_candidate(
    method: Method, dim: int, with_text: bool, n_views: int
) -> None:
    given = task(method, dim=dim, n_views=n_views)
    text = given.text if with_text else None
    if not with_text and refused_without_text(method, given):
        with pytest.raises(UserError, match="text"):
            list(method.sweep(method.grid, given.support, text, given.query))
        return
    if isinstance(method, LinearProbe):  # which tunes more loosely than it fits, by default
        method = replace(method, tuning_tol=method.tol)
    swept = list(method.sweep(method.grid, given.support, text, given.query))
    assert [variant for variant, _ in swept] == list(variants(method, method.grid))
    # Fitting anew takes long; of many variants some are enough.
    for variant, result in swept[:: max(1, len(swept) // 8)]:
        expected = logits(variant, given, text)
        assert not result.requires_grad
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-3)


@parametrized([brisk(m) for m in DEFAULTS if "logit_scale" in {f.name for f in fields(m)}])
def test_the_logit_scale_multiplies_what_the_text_says(method: Method) -> None:
    given = task(method)

    def at(scale: float) -> Tensor:
        return logits(replace(method, logit_scale=scale), given, given.text)

    assert not torch.allclose(at(100.0), at(25.0))
    if is_trained(method) or method.name in NOT_LINEAR_IN_THE_LOGIT_SCALE:
        return
    # Weight of the text is the only place for it: doubled, it moves logits by the same again.
    torch.testing.assert_close(at(100.0) - at(50.0), at(50.0) - at(0.0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_features_of_another_width_are_refused_with_both_shapes(name: str) -> None:
    classifier, narrow = fitted_classifier(name, 16), torch.ones(5, 15)
    with pytest.raises(UserError, match=r"must be \(M, 16\); got \(5, 15\); give those"):
        classifier.logits(narrow)
    with pytest.raises(UserError, match=r"must be \(M, 16\); got \(5, 15\); give those"):
        classify(classifier, narrow.numpy())


@pytest.mark.parametrize(
    "name", ["zero-shot", "gda", "ridge", "stack", "two-stage", "proker", "transclip"]
)
def test_an_array_in_place_of_a_text_is_refused(name: str) -> None:
    support = SupportSet(torch.eye(4), torch.arange(4), 4)
    with pytest.raises(UserError, match=r"must be a Text .*; got ndarray \(4, 4\); give Text\("):
        METHODS[name]().fit(support, np.eye(4, dtype=np.float32))  # type: ignore[arg-type]

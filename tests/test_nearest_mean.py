import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import NearestMean, SupportSet, ZeroShot
from tests.toys import task

N_CLASSES = 5


def means(support: SupportSet) -> Tensor:
    """(C, D) means of the images of each class, or of all their views."""
    images, y = support.features[None] if support.views is None else support.views, support.labels
    return torch.stack([images[:, y == k].mean(dim=(0, 1)) for k in range(support.n_classes)])


def test_it_is_the_cosine_to_the_mean_of_the_images_whatever_the_text() -> None:
    support, text, query = task(N_CLASSES)
    cosines = query @ (means(support) / means(support).norm(dim=1, keepdim=True)).T
    for given in (None, text):
        logits = NearestMean().fit(support, given).logits(query)
        torch.testing.assert_close(logits, 100 * cosines)


def test_it_averages_all_views_of_a_class() -> None:
    support, _, query = task(N_CLASSES, n_views=3)
    logits = NearestMean().fit(support, None).logits(query)
    torch.testing.assert_close(logits, 100 * query @ normalize(means(support)).T)


def test_at_full_text_weight_it_is_zero_shot() -> None:
    support, text, query = task(N_CLASSES)
    torch.testing.assert_close(
        NearestMean(text_weight=1.0).fit(support, text).logits(query),
        ZeroShot().fit(None, text).logits(query),
    )


def test_with_half_the_text_it_lies_between_the_two() -> None:
    support, text, query = task(N_CLASSES)
    prototypes = normalize(normalize(means(support)) + text.features)
    logits = NearestMean(text_weight=0.5).fit(support, text).logits(query)
    torch.testing.assert_close(logits, 100 * query @ prototypes.T)


def test_it_needs_text_only_where_that_has_a_weight() -> None:
    with pytest.raises(UserError, match=r"nearest-mean with text_weight 0.5 needs text"):
        NearestMean(text_weight=0.5).fit(task(N_CLASSES)[0], None)


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_a_text_weight_outside_its_range_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match=r"text_weight must be 0 or more and at most 1"):
        NearestMean(text_weight=weight)

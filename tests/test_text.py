import pytest
import torch
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot.text import Text, required


def vectors(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([2, 0, 0, 1, 2, 0, 3])
TEXT = Text(
    features=vectors(0, 4, 6),
    prompts=normalize(vectors(1, 7, 6)),
    labels=LABELS,
    pooled=vectors(2, 4, 8),
    projection=vectors(3, 8, 6),
)


def test_every_prompt_is_a_sample_of_its_class() -> None:
    features, labels = TEXT.samples()
    torch.testing.assert_close(features, TEXT.prompts)
    assert labels.tolist() == LABELS.tolist()


def test_where_only_means_are_known_each_is_a_sample_at_unit_norm() -> None:
    features, labels = Text(TEXT.features).samples()
    torch.testing.assert_close(features, TEXT.features / TEXT.features.norm(dim=1, keepdim=True))
    assert labels.tolist() == [0, 1, 2, 3]


def test_some_classes_are_numbered_anew_in_the_order_asked_for() -> None:
    assert TEXT.prompts is not None
    assert TEXT.pooled is not None
    part = TEXT.classes(torch.tensor([2, 0]))
    torch.testing.assert_close(part.features, TEXT.features[[2, 0]])
    torch.testing.assert_close(part.pooled, TEXT.pooled[[2, 0]])
    torch.testing.assert_close(part.projection, TEXT.projection)
    torch.testing.assert_close(part.prompts, TEXT.prompts[[0, 1, 2, 4, 5]])
    assert part.labels is not None
    assert part.labels.tolist() == [0, 1, 1, 0, 1]  # of classes 2, 0, 0, 2, 0


def test_all_classes_in_order_are_the_same_text() -> None:
    same = TEXT.classes(torch.arange(4))
    for name, value in vars(TEXT).items():
        torch.testing.assert_close(getattr(same, name), value)


def test_classes_of_a_text_without_prompts_have_none() -> None:
    part = Text(TEXT.features).classes(torch.tensor([3, 1]))
    torch.testing.assert_close(part.features, TEXT.features[[3, 1]])
    assert (part.prompts, part.labels, part.pooled, part.projection) == (None, None, None, None)


def test_required_text_is_its_features_or_a_refusal_that_names_the_method() -> None:
    assert required(TEXT, "gda") is TEXT.features
    with pytest.raises(UserError, match="tip-adapter needs text features and there are none"):
        required(None, "tip-adapter")

import pytest
import torch

from cache.errors import UserError
from fewshot import ZeroShot
from tests.toys import task


def test_it_is_the_scaled_cosine_to_the_text() -> None:
    _, text, query = task(5)
    logits = ZeroShot(50.0).fit(None, text).logits(query)
    torch.testing.assert_close(logits, 50 * query @ text.features.T)


def test_it_says_that_it_needs_text() -> None:
    with pytest.raises(UserError, match="zero-shot needs text features and there are none"):
        ZeroShot().fit(None, None)

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fewshot.parts.softmax_heads import across, cosine_gradient, inner, logit_gradient
from tests.toys import vectors

LABELS = torch.tensor([0, 2, 1, 2, 0])


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


def test_inner_products_are_images_by_classes() -> None:
    f, w = vectors(0, 2, 5, 4), vectors(1, 2, 3, 4)
    torch.testing.assert_close(inner(f, w), torch.einsum("gbd,gcd->gbc", f, w))


def test_the_gradient_of_logits_is_autograds() -> None:
    logits = (10 * vectors(0, 5, 3)).requires_grad_()
    (expected,) = gradients(cross_entropy(logits, LABELS), logits)
    torch.testing.assert_close(logit_gradient(logits.detach(), LABELS), expected)


def test_several_heads_each_have_their_own_gradient() -> None:
    logits = 10 * vectors(0, 4, 5, 3)
    got = logit_gradient(logits, LABELS)
    for one, alone in zip(got, logits, strict=True):
        torch.testing.assert_close(one, logit_gradient(alone, LABELS))


@pytest.mark.parametrize("heads", [(), (2,)], ids=["one head", "two heads"])
def test_the_gradients_of_a_cosine_head_are_autograds(heads: tuple[int, ...]) -> None:
    f = vectors(0, *heads, 5, 4).requires_grad_()
    w = (7 * vectors(1, *heads, 3, 4)).requires_grad_()
    logits = 20 * f @ normalize(w, dim=-1).mT
    loss = sum(cross_entropy(one, LABELS) for one in logits.view(-1, 5, 3))
    assert isinstance(loss, Tensor)
    of_f, of_w = gradients(loss, f, w)
    f, w = f.detach(), w.detach()
    g = cosine_gradient(f, w, LABELS, 20.0)
    torch.testing.assert_close(g @ w, of_f)
    torch.testing.assert_close(across(g.mT @ f, w), of_w)


def test_a_weight_of_zeros_has_a_finite_gradient() -> None:
    f, w = vectors(0, 5, 4), vectors(1, 3, 4)
    w[1] = 0
    g = cosine_gradient(f, w, LABELS, 20.0)
    assert torch.isfinite(across(g.T @ f, w)).all()

import torch
from torch.nn.functional import normalize

from fewshot.parts.class_distributions import ClassDistributions
from tests.toys import vectors


def test_divergences_are_kullbacks_and_leiblers() -> None:
    text = normalize(vectors(0, 4, 8))
    images, others = normalize(vectors(1, 5, 8)), normalize(vectors(2, 6, 8))
    p, q = (torch.softmax(x @ text.T / 0.2, dim=1) for x in (images, others))
    here, there = (ClassDistributions.of(x, text, 0.2) for x in (images, others))
    torch.testing.assert_close(here.p, p)
    expected = (p[:, None] * (p[:, None].log() - q.log())).sum(dim=2)
    torch.testing.assert_close(here.divergences(there.log, slice(1, 4)), expected[1:4])
    uniform = (p * (4 * p).log()).sum(dim=1)
    torch.testing.assert_close(here.from_uniform, uniform)

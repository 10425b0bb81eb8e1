import torch
from torch.nn.functional import normalize, one_hot

from fewshot import SupportSet
from fewshot.parts.spherical_mixture import LabeledSums, estimate, means_of_the_surest
from tests.toys import vectors

LABELS = torch.tensor([0, 0, 1, 2, 2, 2])


def test_means_and_variance_are_of_all_images_by_their_weights() -> None:
    shots, x = vectors(1, 6, 5), vectors(2, 9, 5)
    z = torch.softmax(vectors(3, 9, 3), dim=1)
    labeled = LabeledSums.of(SupportSet(shots, LABELS, 3), each=0.2)
    means, variance = estimate(x, z, labeled)
    weights = torch.cat([z / 9, 0.2 * one_hot(LABELS, 3)])
    images = torch.cat([x, shots])
    expected = normalize(weights.T @ images, dim=1)
    torch.testing.assert_close(means, expected)
    apart = sum(weights[i, k] * (images[i] - expected[k]) ** 2 for i in range(15) for k in range(3))
    torch.testing.assert_close(variance, apart / weights.sum())


def test_without_labeled_images_the_others_are_all_there_is() -> None:
    x, z = vectors(2, 9, 5), torch.softmax(vectors(3, 9, 3), dim=1)
    means, _ = estimate(x, z, LabeledSums.of(None, each=0.0))
    torch.testing.assert_close(means, normalize(z.T @ x, dim=1))


def test_images_that_do_not_differ_have_a_variance_above_zero() -> None:
    x = vectors(2, 1, 5).expand(4, 5)
    _, variance = estimate(x, torch.full((4, 2), 0.5), LabeledSums.of(None, each=0.0))
    assert (variance > 0).all()


def test_a_first_mean_is_of_the_eight_surest_images_of_its_class() -> None:
    x, y = vectors(2, 20, 5), torch.softmax(3 * vectors(3, 20, 2), dim=1)
    best = [y[:, k].argsort(descending=True)[:8] for k in range(2)]
    expected = torch.stack([y[rows, k] @ x[rows] for k, rows in enumerate(best)])
    torch.testing.assert_close(means_of_the_surest(x, y), normalize(expected, dim=1))

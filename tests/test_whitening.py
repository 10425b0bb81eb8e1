import torch

from fewshot.parts.whitening import Whitening
from tests.toys import task


def test_the_classes_of_whitened_features_are_rounder_than_those_of_the_features() -> None:
    support, _, _ = task(3, shots=40, dim=6)
    stretch = torch.tensor([8.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    long = torch.nn.functional.normalize(support.features * stretch, dim=1)
    support = type(support)(long, support.labels, 3)

    def roundness(features: torch.Tensor) -> float:
        within = torch.cat([features[support.labels == k] for k in range(3)])
        means = torch.stack([features[support.labels == k].mean(dim=0) for k in range(3)])
        spectrum = torch.linalg.eigvalsh(torch.cov((within - means.repeat_interleave(40, 0)).T))
        return float(spectrum[0] / spectrum[-1])

    whitened = Whitening.of(support)(support.features)
    torch.testing.assert_close(whitened.norm(dim=1), torch.ones(120))
    assert roundness(whitened) > 2 * roundness(support.features)


def test_views_are_samples_and_are_whitened_like_the_images() -> None:
    support, _, _ = task(3, shots=4, n_views=5)
    whitening = Whitening.of(support)
    white = whitening.support(support)
    assert white.views is not None
    assert support.views is not None
    torch.testing.assert_close(white.views[2], whitening(support.views[2]))
    torch.testing.assert_close(white.features, whitening(support.features))
    torch.testing.assert_close(whitening.center, support.views.flatten(0, 1).mean(dim=0))


def test_an_image_at_the_mean_is_kept_without_a_direction() -> None:
    support, _, _ = task(2, shots=1)
    twins = type(support)(support.features[:1].repeat(2, 1), support.labels, 2)
    whitening = Whitening(torch.eye(12), twins.features[0])
    assert not whitening.support(twins).features.any()

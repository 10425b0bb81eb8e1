from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import normalize

from fewshot import LinearProbe, SupportSet, Text
from fewshot.metrics import harmonic_mean
from fewshot.sampling import base_new, restrict
from fewshot.synthesis.generators import synthesize
from fewshot.synthesis.ship import Autoencoder, ClassTexts, Ship, divergence
from tests.toys import task, vectors

Array = NDArray[np.float64]


def parameters(model: Autoencoder) -> dict[str, Array]:
    return {name: p.detach().double().numpy() for name, p in model.named_parameters()}


def one_step(
    p: dict[str, Array], f: Array, t: Array, noise: Array, beta: float
) -> tuple[float, float, dict[str, Array]]:
    """Reconstruction, KL divergence and gradients of a batch, written out."""
    n = len(f)
    h = np.maximum(f @ p["encoder.0.weight"].T + p["encoder.0.bias"], 0)
    mean = h @ p["mean.weight"].T + p["mean.bias"]
    log_variance = h @ p["log_variance.weight"].T + p["log_variance.bias"]
    deviation = np.exp(log_variance / 2)
    z = mean + noise * deviation
    k = np.maximum(z @ p["generator.0.weight"].T + p["generator.0.bias"], 0)
    u = t + p["context"] + k @ p["generator.2.weight"].T + p["generator.2.bias"]
    norm = np.linalg.norm(u, axis=1, keepdims=True)
    v = u / norm
    kl = sum(
        (m * m + np.exp(s) - 1 - s) / 2
        for m, s in zip(mean.ravel(), log_variance.ravel(), strict=True)
    )
    dv = 2 * (v - f) / n
    du = (dv - v * (v * dv).sum(axis=1, keepdims=True)) / norm
    dk = du @ p["generator.2.weight"] * (k > 0)
    dz = dk @ p["generator.0.weight"]
    d_mean = dz + beta * mean / n
    d_log = dz * noise * deviation / 2 + beta * (np.exp(log_variance) - 1) / 2 / n
    dh = (d_mean @ p["mean.weight"] + d_log @ p["log_variance.weight"]) * (h > 0)
    layers = {
        "encoder.0": (dh, f), "mean": (d_mean, h), "log_variance": (d_log, h),
        "generator.0": (dk, z), "generator.2": (du, k),
    }  # fmt: skip
    gradients = {"context": du.sum(axis=0)}
    for name, (out, into) in layers.items():
        gradients[f"{name}.weight"], gradients[f"{name}.bias"] = out.T @ into, out.sum(axis=0)
    return float(((v - f) ** 2).sum() / n), float(kl / n), gradients


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_one_step_is_that_of_the_loss_written_out(beta: float) -> None:
    support, text, _ = task(3, shots=5, dim=12)
    ship = Ship(beta=beta, latent=4, hidden=8, epochs=1)
    decoder = ClassTexts(7 * text.features)
    made = ship.train(support, decoder, seed=3)
    draws = torch.Generator().manual_seed(3)
    before = Autoencoder(12, 4, 8, 12, draws)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(15, 4, generator=draws).double().numpy()
    start = parameters(before) | {"context": np.zeros(12)}
    f = support.features[order].double().numpy()
    t = normalize(text.features)[support.labels[order]].double().numpy()
    reconstruction, kl, gradients = one_step(start, f, t, noise, beta)
    assert made.log[0] == pytest.approx((reconstruction, kl), abs=1e-5)
    after = parameters(made.autoencoder) | {"context": decoder.context.detach().double().numpy()}
    for name, value in start.items():
        g = gradients[name]
        adam = value * (1 - 1e-3 * 0.01) - 1e-3 * g / (np.abs(g) + 1e-8)
        known = np.abs(g) > 1e-6  # below that the sign is one of rounding
        np.testing.assert_allclose(after[name][known], adam[known], atol=1e-5)
        assert known.any()


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    mean, log_variance = vectors(0, 6, 5), 3 * vectors(1, 6, 5)
    posterior = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(divergence(mean, log_variance), expected)


def test_the_divergence_is_zero_where_the_posterior_is_the_prior() -> None:
    assert divergence(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0]


def test_the_log_has_each_epochs_mean_over_images() -> None:
    support, text, _ = task(3, shots=3, dim=12)
    still = Ship(lr=1e-12, latent=2, hidden=4, epochs=3)
    whole = still.train(support, ClassTexts(text.features), seed=1).log
    parts = replace(still, batch_size=4).train(support, ClassTexts(text.features), seed=1).log
    assert len(whole) == len(parts) == 3
    for one, other in zip(whole, parts, strict=True):
        assert one.kl == pytest.approx(other.kl, rel=1e-4)
        assert one.reconstruction == pytest.approx(other.reconstruction, abs=1e-2)


def test_beta_decides_whether_the_posterior_collapses() -> None:
    support, text, _ = task(3, shots=8, dim=12)
    last = {
        beta: Ship(beta=beta, latent=4, hidden=32, epochs=150, lr=3e-3)
        .train(support, ClassTexts(text.features), seed=1)
        .log[-1]
        for beta in (0.0, 1.0)
    }
    assert last[1.0].kl < 0.01 < 1 < last[0.0].kl
    assert last[0.0].reconstruction < last[1.0].reconstruction


def test_features_are_decoded_from_the_prior() -> None:
    support, text, _ = task(3, shots=4, dim=12)
    decoder = ClassTexts(text.features)
    made = Ship(latent=4, hidden=8, epochs=2).train(support, decoder, seed=1)
    t, labels = normalize(text.features), torch.tensor([2, 0, 2])
    got = made.features(labels, torch.Generator().manual_seed(5))
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = t[labels] + decoder.context + made.autoencoder.generator(z)
    torch.testing.assert_close(got, normalize(expected))
    assert not torch.equal(got[0], got[2])


def test_views_train_and_the_norm_of_the_text_does_not_matter() -> None:
    support, text, _ = task(3, shots=4, dim=12, n_views=2)
    ship = Ship(latent=4, hidden=8, epochs=2)
    by_views = ship.train(support, ClassTexts(text.features), seed=1)
    crops = ship.train(replace(support, views=None), ClassTexts(text.features), seed=1)
    scaled = ship.train(support, ClassTexts(3 * text.features), seed=1)
    assert by_views.log != crops.log
    np.testing.assert_allclose(by_views.log, scaled.log, atol=1e-6)


def test_on_real_features_a_linear_probe_beats_zero_shot_from_base_to_new(shared: Path) -> None:
    with np.load(shared / "features" / "ucf101_openai_vitb16.npz") as arrays:
        f = {key: torch.from_numpy(arrays[key]) for key in arrays if key[-2:] in ("_x", "_y", "xt")}
    text = normalize(f["text"].float())
    base, new = base_new(len(text))
    rows, labels = restrict(f["train16_y"], base)
    features = normalize(f["train16_x"][rows].float())
    support = SupportSet(features, torch.from_numpy(labels), len(base))
    ship = Ship(images=8, latent=32, hidden=128, epochs=25)
    both = synthesize(ship, support, text, seed=1).beside(support)
    probe = LinearProbe(tol=1e-2).fit(both, Text(text))
    test, truth = normalize(f["test_x"].float()), f["test_y"]

    def h(logits: torch.Tensor) -> float:
        halves = []
        for half in (base, new):
            here = torch.from_numpy(restrict(truth, half)[0])
            said = logits[here][:, list(half)].argmax(dim=1) + half.start
            halves.append(float((said == truth[here]).float().mean()))
        return harmonic_mean(*halves)

    assert h(probe.logits(test)) > h(test @ text.T) + 0.03

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import SupportSet, classify
from fewshot.abilities import AdaptsToDomain
from fewshot.classifier import LinearClassifier
from fewshot.methods.two_stage import TwoStage
from fewshot.open_set import certainty
from fewshot.parts.pseudo_labels import adaptation_loss, centroid_labels
from fewshot.parts.residual_layer import BottleneckClassifier
from fewshot.text import Text
from tests.toys import vectors

SCALE = 10.0


def domains(n: int = 60, dim: int = 8) -> tuple[SupportSet, Text, Tensor, Tensor]:
    """A labeled source, text, and a target whose images are all shifted alike, with labels."""
    centers = vectors(0, 3, dim)
    labels = torch.arange(n) % 3
    source = SupportSet(normalize(centers[labels] + 0.5 * vectors(1, n, dim)), labels, 3)
    shift = 0.8 * normalize(centers[1] - centers[0], dim=0)
    target = normalize(centers[labels] + 0.3 * vectors(2, n, dim) + shift)
    return source, Text(normalize(centers + 0.3 * vectors(3, 3, dim))), target, labels


def test_the_loss_of_stage_two_is_that_of_its_definition_image_by_image() -> None:
    logits, pseudo = 3 * vectors(5, 6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    known = torch.tensor([True, True, False, False, False, False])
    unknown = torch.tensor([False, False, False, True, True, True])
    entropy, cross = [], []
    for i, row in enumerate(logits.double().tolist()):
        p = [math.exp(z) / sum(map(math.exp, row)) for z in row]
        cross.append(-math.log(p[pseudo[i]]))
        entropy.append(-sum(one * math.log(one) for one in p))
    expected = sum(cross[:2]) / 2 - 0.3 * sum(entropy[3:]) / 3
    got = adaptation_loss(logits, pseudo, known, unknown, 0.3)
    assert float(got) == pytest.approx(expected, abs=1e-5)
    for row, h in zip(logits, entropy, strict=True):
        assert float(certainty(row[None])) == pytest.approx(1 - h / math.log(4), abs=1e-5)
    none = torch.zeros(6, dtype=torch.bool)
    assert float(adaptation_loss(logits, pseudo, none, none, 0.3)) == 0


def test_centroid_labels_are_those_of_loops() -> None:
    features, probabilities = vectors(1, 30, 5), torch.softmax(4 * vectors(2, 30, 3), dim=1)
    x = [np.append(f, 1) / math.sqrt(2) for f in features.double().numpy()]
    shares = probabilities.double().numpy()
    for _ in range(2):
        centroids = [sum(s[k] * f for s, f in zip(shares, x, strict=True)) for k in range(3)]
        cosines = [[f @ c / np.linalg.norm(c) for c in centroids] for f in x]
        labels = np.argmax(cosines, axis=1)
        shares = np.eye(3)[labels]
    assert centroid_labels(features, probabilities).tolist() == labels.tolist()


def test_a_first_step_of_adaptation_is_against_the_numerical_gradient() -> None:
    source, text, target, _ = domains()
    method = TwoStage(epochs=0, adapt_epochs=1, batch_size=100, lr=0.05, logit_scale=SCALE)
    start = method.fit(source, text)
    moved = method.adapt(start, target, unknown=True)
    logits = start.logits(target)
    pseudo = centroid_labels(target, torch.softmax(logits, dim=1))
    sure = certainty(logits)
    x, w = target.double(), start.weight.double()

    def loss(matrix: Tensor, shift: Tensor) -> float:
        z = normalize(x + x @ matrix.T + shift) @ w.T
        return float(adaptation_loss(z, pseudo, sure > 0.5, sure < 0.5, 0.3))

    h = 1e-6
    for i in range(8):
        unit = torch.zeros(8, dtype=torch.float64)
        unit[i] = h
        zero, row = torch.zeros(8, 8).double(), torch.zeros(8, 8).double()
        slope = (loss(zero, unit) - loss(zero, -unit)) / (2 * h)
        assert float(moved.shift[i]) == pytest.approx(-0.05 * slope, abs=1e-5)
        row[i, 3] = h
        slope = (loss(row, 0 * unit) - loss(-row, 0 * unit)) / (2 * h)
        assert float(moved.matrix[i, 3]) == pytest.approx(-0.05 * slope, abs=1e-5)
    assert torch.equal(moved.weight, start.weight)


def moved(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    return normalize(x + x @ matrix.T + shift)


def test_stage_one_is_a_plain_loop_with_a_teacher() -> None:
    source, text, _, _ = domains(n=32)
    epochs, lr = 6, 0.3
    got = TwoStage(epochs=epochs, lr=lr, batch_size=100, logit_scale=SCALE).fit(source, text)
    x, y = source.features.double(), source.labels
    a, b = torch.zeros(8, 8).double(), torch.zeros(8).double()
    parts = [a, b, text.features.double()]
    speed = [torch.zeros_like(part) for part in parts]
    share = 32 / (3 * torch.bincount(y)[y])
    teacher: list[Tensor] = []
    for step in range(epochs):
        if not teacher and step >= 0.4 * epochs:
            teacher = [parts[0], parts[1], SCALE * normalize(parts[2])]
        leaves = [part.clone().requires_grad_() for part in parts]
        logits = SCALE * moved(x, leaves[0], leaves[1]) @ normalize(leaves[2]).T
        log_p = torch.log_softmax(logits, dim=1)
        smooth = 0.9 * torch.nn.functional.one_hot(y, 3) + 0.1 / 3
        loss = -(smooth * log_p).sum(dim=1)
        if teacher:
            soft = torch.softmax(moved(x, *teacher[:2]) @ teacher[2].T, dim=1)
            loss = loss - (soft * log_p).sum(dim=1)
        found = torch.autograd.grad((share * loss).mean(), leaves)
        speed = [0.9 * v + g for v, g in zip(speed, found, strict=True)]
        rate = lr / (1 + 10 * step / epochs)
        parts = [part - rate * v for part, v in zip(parts, speed, strict=True)]
        if teacher:
            now = [parts[0], parts[1], SCALE * normalize(parts[2])]
            teacher = [0.95 * old + 0.05 * new for old, new in zip(teacher, now, strict=True)]
    expected = moved(x, *parts[:2]) @ (SCALE * normalize(parts[2])).T
    torch.testing.assert_close(got.logits(source.features).double(), expected, rtol=0, atol=1e-3)


def test_stage_two_is_a_plain_loop_whose_margin_grows() -> None:
    source, text, target, _ = domains()
    method = TwoStage(epochs=0, adapt_epochs=6, batch_size=100, lr=0.3, logit_scale=6.0)
    start = method.fit(source, text)
    got = method.adapt(start, target, unknown=True)
    x, w = target.double(), start.weight.double()
    parts = [torch.zeros(8, 8).double(), torch.zeros(8).double()]
    speed = [torch.zeros_like(part) for part in parts]
    counts = []
    for step in range(6):
        behind = moved(x, *parts)
        p = torch.softmax(behind @ w.T, dim=1)
        sure = 1 + (p * p.log()).sum(dim=1) / math.log(3)
        pseudo, margin = centroid_labels(behind, p), 0.2 * step / 6
        known, unknown = sure > 0.5 + margin, sure < 0.5 - margin
        counts.append((int(known.sum()), int(unknown.sum())))
        leaves = [part.clone().requires_grad_() for part in parts]
        log_p = torch.log_softmax(moved(x, *leaves) @ w.T, dim=1)
        cross = -log_p[known, pseudo[known]].mean()
        entropy = -(log_p.exp() * log_p).sum(dim=1)[unknown].mean()
        found = torch.autograd.grad(cross - 0.3 * entropy, leaves)
        speed = [0.9 * v + g for v, g in zip(speed, found, strict=True)]
        rate = 0.3 / (1 + 10 * step / 6)
        parts = [part - rate * v for part, v in zip(parts, speed, strict=True)]
    assert sum(map(sum, counts)) < 6 * len(
        x
    )  # some images are in the margin, and count for nothing
    assert min(map(min, counts)) > 0
    expected = moved(x, *parts) @ w.T
    torch.testing.assert_close(got.logits(target).double(), expected, rtol=0, atol=1e-3)


def test_adaptation_finds_a_domain_that_is_shifted() -> None:
    source, text, target, labels = domains()
    method = TwoStage(logit_scale=SCALE)
    alone = method.fit(source, text)
    adapted = method.adapt(alone, target, unknown=False)
    before, after = (
        float((classify(c, target) == labels).float().mean()) for c in (alone, adapted)
    )
    assert after > before + 0.1


def test_no_steps_are_the_text_and_no_adaptation_the_source() -> None:
    source, text, target, _ = domains()
    method = TwoStage(epochs=0, adapt_epochs=0, logit_scale=SCALE)
    start = method.fit(source, text)
    torch.testing.assert_close(start.logits(target), SCALE * target @ text.features.T)
    torch.testing.assert_close(
        method.adapt(start, target, unknown=True).logits(target), start.logits(target)
    )
    means = TwoStage(epochs=0).fit(source, None).weight / 100
    for k in range(3):
        mean = source.features[source.labels == k].mean(dim=0)
        torch.testing.assert_close(means[k], mean / mean.norm())


def test_unknown_images_are_pushed_apart_only_where_there_may_be_some() -> None:
    source, text, target, _ = domains()
    method = TwoStage(logit_scale=3.0)  # so low that most images are below the middle
    start = method.fit(source, text)
    closed, pushed = (method.adapt(start, target, unknown=u) for u in (False, True))
    assert float(certainty(pushed.logits(target)).mean()) < float(
        certainty(closed.logits(target)).mean()
    )


def test_a_class_of_many_images_counts_as_much_as_one_of_few() -> None:
    centers = vectors(0, 2, 8)
    labels = torch.tensor([0] * 190 + [1] * 10)
    images = normalize(centers[labels] + vectors(1, 200, 8))
    got = TwoStage(logit_scale=1.0, lr=0.1).fit(SupportSet(images, labels, 2), None)
    # Were it not so, an image of noise would be taken for the class of many.
    share = float((classify(got, vectors(7, 400, 8)) == 0).float().mean())
    assert 0.35 < share < 0.65


def test_the_source_is_out_of_reach_and_another_methods_classifier_is_refused() -> None:
    _, text, target, _ = domains()
    method = TwoStage()
    assert isinstance(method, AdaptsToDomain)
    with pytest.raises(UserError, match="adapts what it fitted itself"):
        method.adapt(LinearClassifier(text.features), target, unknown=False)
    assert set(vars(BottleneckClassifier(torch.eye(2), torch.zeros(2), torch.eye(2)))) == {
        "matrix", "shift", "weight", "stats",
    }  # fmt: skip

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot.automatic.page.unsure import none_of_these
from fewshot.html import Notes, Paragraph
from fewshot.model_selection.conformal import p_values
from fewshot.model_selection.open_set_scores import SCORES, fit_score, gaussian_classes
from fewshot.model_selection.unknown_classes import best_elsewhere, find_open_set
from fewshot.support import SupportSet
from fewshot.text import Text


def drawn(n_classes: int, images: int, spread: float = 0.25, seed: int = 0) -> SupportSet:
    """Unit features of 24 dimensions about class means drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    means = normalize(torch.randn(n_classes, 24, generator=generator))
    labels = torch.arange(n_classes).repeat(images)
    noise = torch.randn(len(labels), 24, generator=generator)
    return SupportSet(normalize(means[labels] + spread * noise), labels, n_classes)


def split(whole: SupportSet, known: int) -> tuple[SupportSet, Tensor, Tensor]:
    """Half of the images of the first classes, the other half, and all of the other classes."""
    inside = whole.labels < known
    first = torch.arange(len(whole.labels)) < len(whole.labels) // 2
    rows = inside & first
    train = SupportSet(whole.features[rows], whole.labels[rows], known)
    return train, whole.features[inside & ~first], whole.features[~inside]


def test_unknown_images_are_refused_about_as_often_as_promised_and_known_ones_kept() -> None:
    train, known, other = split(drawn(18, 40), 12)
    found = find_open_set(train, None)
    assert found is not None
    assert found.range[0] <= found.auroc <= found.range[1]
    assert found.compared[found.name] == max(found.compared.values()) > 0.9
    p_known, p_other = (p_values(found.score.score(x), found.held_out) for x in (known, other))
    assert float((p_known > 0.05).double().mean()) > 0.92
    refused = float((p_other <= 0.05).double().mean())
    assert refused == pytest.approx(found.refused, abs=0.2)
    assert refused > 0.5


def test_features_that_say_nothing_tell_nothing_and_no_luck_is_promised() -> None:
    noise = normalize(torch.randn(90, 24, generator=torch.Generator().manual_seed(3)))
    found = find_open_set(SupportSet(noise, torch.arange(90) % 9, 9), None)
    assert found is not None
    assert found.auroc < 0.6  # 0.5 but for chance
    assert max(found.compared.values()) >= found.auroc


def test_each_turn_takes_the_score_that_is_best_in_the_others() -> None:
    aurocs = np.array([[0.9, 0.5, 0.6], [0.4, 0.8, 0.7], [0.5, 0.6, 0.7]])
    # The sums of the others: (0.9, 1.4, 1.4), (1.4, 1.1, 1.3), (1.3, 1.3, 1.3).
    assert best_elsewhere(aurocs).tolist() == [1, 0, 0]


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_what_its_definition_says_whatever_the_norm(name: str) -> None:
    support = drawn(4, 6)
    classifier = gaussian_classes(support, None, 100.0)
    query = drawn(3, 2, seed=9).features
    found = fit_score(name, support, classifier, 2.0).score(7 * query)
    assert classifier.bias is not None
    logits = (query @ classifier.weight.T + classifier.bias).double() / 2
    if name == "max-softmax":
        expected = torch.softmax(logits, 1).max(1).values
    elif name == "nearest images":
        expected = (query @ support.features.T).max(1).values.double()
    else:
        x, y = support.features.double().numpy(), support.labels.numpy()
        means = np.stack([x[y == k].mean(0) for k in range(4)])
        residuals = x - means[y]
        scatter = residuals.T @ residuals / (len(x) - 1)
        s = 24 / (24 + len(x) - 1)
        covariance = (1 - s) * scatter + s * np.trace(scatter) / 24 * np.eye(24)
        inverse = np.linalg.inv(covariance)
        apart = query.double().numpy()[:, None] - means
        expected = -torch.tensor(np.einsum("mkd,de,mke->mk", apart, inverse, apart).min(1))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_too_few_classes_or_images_have_no_score_and_alike_ones_do_no_harm() -> None:
    assert find_open_set(None, None) is None
    assert find_open_set(drawn(2, 30), None) is None
    assert find_open_set(drawn(3, 6), None) is None  # 18 images
    assert find_open_set(drawn(30, 1), None) is None
    alike = torch.zeros(60, 8).index_fill_(1, torch.tensor([0]), 1.0)
    assert find_open_set(SupportSet(alike, torch.arange(60) % 3, 3), None) is None


def test_of_few_held_out_images_the_page_says_at_most() -> None:
    few, many = (find_open_set(drawn(6, n), None) for n in (8, 20))
    assert few is not None
    assert many is not None
    assert (few.enough, many.enough) == (False, True)
    for found, word in ((few, "at most"), (many, "about")):
        first, *_, notes = none_of_these(found)
        assert isinstance(first, Paragraph)
        assert isinstance(notes, Notes)
        assert f"your classes {word} " in first.bold
        assert any("48 photos held back" in note for note in notes.sentences) is not found.enough


def test_text_is_cut_to_the_classes_that_are_not_hidden() -> None:
    support = drawn(6, 8)
    text = normalize(torch.randn(6, 24, generator=torch.Generator().manual_seed(2)))
    found = find_open_set(support, Text(text))
    assert found is not None
    again = find_open_set(replace(support), Text(text))
    assert again is not None
    assert again.held_out == found.held_out

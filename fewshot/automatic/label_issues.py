"""Images whose label is probably wrong.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR
2021, https://arxiv.org/abs/1911.00068: a class's average self-confidence, the mean probability
that images labeled so get for it, says how sure is sure for that class. Stricter than theirs in
that the given label must fall short of its own class's average, too.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.model_selection.near_duplicates import Conflict


@dataclass(frozen=True)
class LabelIssue:
    """An image to look at again.

    Attributes:
        row: Row of the image.
        label: Its label.
        suggested: The label it probably should have.
        p_label: Probability of the label, in 0..1; None where the image was not judged.
        p_suggested: Probability of the suggested label.
        duplicate: True if a near-duplicate of it has the suggested label, which is then why.
    """

    row: int
    label: int
    suggested: int
    p_label: float | None
    p_suggested: float | None
    duplicate: bool


def find_label_issues(
    probabilities: Tensor, labels: Tensor, judged: Tensor, conflicts: Sequence[Conflict] = ()
) -> tuple[LabelIssue, ...]:
    """Near-duplicates under two labels, then the others by how far the label falls behind.

    Of near-duplicates those are listed whose label is no more frequent among them than another:
    with three cats and one dog the dog, with one of each both. Another image is listed if some
    class is likelier than its label and at least as probable as it is on average for images
    labeled so, while the label is less probable than on average; the largest normalized margin,
    p of that class less p of the label, comes first.

    Args:
        probabilities: (N, C) out-of-fold and calibrated; rows not judged are not looked at.
        labels: (N,) class ids.
        judged: (N,) bool.
        conflicts: By `near_duplicates.conflicts`.
    """
    duplicates = [one for c in conflicts for one in _near_duplicates(c, probabilities, judged)]
    known = {one.row for one in duplicates}
    rows = torch.nonzero(judged).flatten()
    p, given = probabilities[rows], labels[rows]
    of_label = p.gather(1, given[:, None])[:, 0]
    counts = torch.bincount(given, minlength=p.shape[1])
    confidence = torch.zeros(p.shape[1], dtype=p.dtype).index_add_(0, given, of_label) / counts
    # A class without a judged image has no average, 0 / 0, and nothing compares with NaN.
    p = p.where(p >= confidence, -1.0)
    p_suggested, suggested = p.max(dim=1)
    margin = p_suggested - of_label
    doubted = (margin > 0) & (of_label < confidence[given])
    found = torch.nonzero(doubted).flatten()
    found = found[torch.argsort(margin[found], descending=True, stable=True)]
    others = [
        LabelIssue(
            row=int(rows[i]),
            label=int(given[i]),
            suggested=int(suggested[i]),
            p_label=float(of_label[i]),
            p_suggested=float(p_suggested[i]),
            duplicate=False,
        )
        for i in found.tolist()
        if int(rows[i]) not in known
    ]
    return (*duplicates, *others)


def _near_duplicates(conflict: Conflict, probabilities: Tensor, judged: Tensor) -> list[LabelIssue]:
    """The images of a group whose label is no more frequent there than another."""
    counts = Counter(conflict.labels)
    found = []
    for row, label in zip(conflict.rows, conflict.labels, strict=True):
        seen = bool(judged[row])
        p = probabilities[row].tolist()
        others = [k for k in counts if k != label]
        suggested = max(others, key=lambda k: (counts[k], p[k] if seen else 0.0))
        if counts[suggested] < counts[label]:
            continue
        p_label, p_suggested = (p[label], p[suggested]) if seen else (None, None)
        found.append(LabelIssue(row, label, suggested, p_label, p_suggested, duplicate=True))
    return found

"""Photos that are not independent: the same one saved twice, a burst, a scene; and label conflicts.

A photo whose twin is learned from is no test of anything: split between folds they would flatter
every method, and most of all those that remember single images.

A group is a leader and all that are close to it, never a chain of neighbors: where an encoder sees
little difference between photos, chains link hundreds that have little in common.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Of 7,300 frames of UCF101 (CLIP ViT-B/16), 3,600 photos of DTD (RN50) and 1,000 of WHU-RS19
# (ViT-B/32) this takes 22 for duplicates, and no two with different labels.
THRESHOLD = 0.995
# Of the median distance between two images of the class. UCF101's file names tell which clips are
# of one recording: of pairs that this links in its val split (ViT-B/16) 97 % are, as at smaller
# shares; at 0.3 it is 95 %, at 0.4 84 %. It links 27 % of all such pairs, those that look alike.
# With it the cross-validated accuracy of GDA on UCF101 at 8 and 16 shots is 0.5 to 1.9 points above
# that on other videos, without groups 3.1 to 4.8; on DTD and WHU-RS19, whose images are
# independent, it moves by 1.1 at most.
SCENE = 0.25
ROUNDING = 0.9999  # features are stored in half precision: equal ones may differ by that
TYPICAL = 500  # images of a class that its median distance is taken from
BLOCK = 1024  # images compared with all leaders at a time


@dataclass(frozen=True)
class Conflict:
    """A group of near-duplicates that have more than one label.

    Attributes:
        rows: Of its images, in ascending order.
        labels: Of these, in the same order.
    """

    rows: tuple[int, ...]
    labels: tuple[int, ...]


def near_duplicates(features: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """(N,) int64 group of each image, numbered from 0 in the order of their first images.

    In order, each image joins the first leader to which it has at least the threshold's cosine,
    and leads a group of its own where there is none.

    Args:
        features: (N, D), any norm.
        threshold: The minimum cosine to the leader.
    """
    unit = normalize(features, dim=1)
    group = torch.full((len(unit),), -1)
    leaders = torch.empty(0, dtype=torch.int64)
    for block in torch.split(torch.arange(len(unit)), BLOCK):
        if len(leaders):
            close = unit[block] @ unit[leaders].T >= threshold
            joins = close.any(dim=1)
            group[block[joins]] = close[joins].int().argmax(dim=1)
        free = block[group[block] < 0]
        close = unit[free] @ unit[free].T >= threshold
        new: list[int] = []
        for i, row in enumerate(free.tolist()):
            if group[row] < 0:
                followers = free[i:][close[i, i:] & (group[free[i:]] < 0)]
                group[followers] = group[row] = len(leaders) + len(new)
                new.append(row)
        leaders = torch.cat([leaders, torch.tensor(new, dtype=torch.int64)])
    return group


def scenes(features: Tensor, labels: Tensor) -> Tensor:
    """(N,) int64 group of each image of what folds should keep together, within each class.

    Frames of one video, shots of one thing in one place: images of a class whose distance,
    1 - cosine, is at most a quarter of the median distance within the class. No one number would
    do: encoders and subjects differ in how alike all images of a class are.

    Args:
        features: (N, D), any norm.
        labels: (N,) class ids.
    """
    group = torch.empty(len(labels), dtype=torch.int64)
    n_groups = 0
    for label in torch.unique(labels).tolist():
        rows = torch.nonzero(labels == label).flatten()
        found = near_duplicates(features[rows], scene_threshold(features[rows]))
        group[rows] = found + n_groups
        n_groups += int(found.max()) + 1
    return group


def scene_threshold(features: Tensor) -> float:
    """The cosine from which two images of a class are of one scene; see `scenes`.

    Args:
        features: (n, D) of the images of one class, any norm.
    """
    some = normalize(features[:: max(1, len(features) // TYPICAL)], dim=1)
    if len(some) < 2:
        return THRESHOLD
    upper = torch.triu_indices(len(some), len(some), 1)
    distances = 1 - (some @ some.T)[upper[0], upper[1]]
    return min(1 - SCENE * float(distances.median()), ROUNDING)


def conflicts(groups: Tensor, labels: Tensor) -> tuple[Conflict, ...]:
    """The groups with images of more than one label, the largest first.

    Args:
        groups: (N,) by `near_duplicates`.
        labels: (N,) class ids.
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    label = labels.tolist()
    found = [
        Conflict(tuple(rows), tuple(label[row] for row in rows))
        for rows in members.values()
        if len({label[row] for row in rows}) > 1
    ]
    return tuple(sorted(found, key=lambda conflict: -len(conflict.rows)))

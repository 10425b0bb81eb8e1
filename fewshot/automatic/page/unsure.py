"""The sections on photos of no class, and on sets of classes instead of one."""

from collections.abc import Sequence

from cache.errors import count
from fewshot.automatic.wording import in_100
from fewshot.html import Block, Notes, Paragraph
from fewshot.model_selection.conformal import Coverage, needed
from fewshot.model_selection.unknown_classes import OpenSet
from fewshot.tables import Number, Table

WORDS = {
    "max-softmax": "the highest probability",
    "mahalanobis": "the distance to the nearest class, in the classes' own spread",
    "nearest images": "how alike the nearest labeled photo is",
}


def none_of_these(open_set: OpenSet | None) -> list[Block]:
    """Return how well photos of no class are kept apart from others.

    Args:
        open_set: None where that could not be judged.
    """
    if open_set is None:
        sentence = (
            "Whether a photo shows none of the classes can be told from three classes and some 20 "
            "photos beyond the first of each on."
        )
        return [Notes([sentence])]
    low, high = open_set.range
    sentence = (
        f"Of photos that show none of your classes {'about' if open_set.enough else 'at most'} "
        f"{in_100(open_set.refused)} are refused where 95 in 100 of the others are kept."
    )
    notes = [
        (
            "Found by hiding some classes at a time: their photos had to be told from photos held "
            f"back of the other classes. AUROC {open_set.auroc:.3f} on average, {low:.3f} to "
            f"{high:.3f} from turn to turn: how often a known photo scores above an unknown one. "
            "In each turn the score was the one that was best in the other turns. The hidden "
            "classes are of the kind that yours are; photos of other things may be easier to tell."
        ),
        "fewshot predict --unknown makes use of it: such photos are labeled unknown.",
    ]
    if not open_set.enough:
        notes.append(
            f"With {count(len(open_set.held_out), 'photo')} held back, too few for an exact "
            "threshold, it keeps more of the known photos and refuses fewer of the others."
        )
    rows = [
        (name + (" ★" if name == open_set.name else ""), WORDS[name], Number(100 * value))
        for name, value in open_set.compared.items()
    ]
    return [
        Paragraph("", bold=sentence),
        Table("Scores that could tell", ("score", "what it is", "AUROC, %"), rows),
        Notes(notes),
    ]


def sets_of_classes(checked: Sequence[Coverage]) -> list[Block]:
    """Return how prediction sets did on photos held back.

    Args:
        checked: One or more.
    """
    rows = [(f"{100 * c.asked:g} %", Number(100 * c.found), Number(c.size)) for c in checked]
    notes = (
        (
            f"Checked on {count(checked[0].images, 'photo')} held back, each with thresholds of "
            "the other folds' photos. A class has a threshold of its own where enough of its "
            f"photos were held back ({needed(0.9)} for 90 %); the others share one."
        ),
        "fewshot predict --coverage 0.9 prints such sets.",
    )
    header = ("asked for", "sets with the true class, %", "classes in a set, mean")
    return [Table("Sets of classes that hold the true one", header, rows, notes)]

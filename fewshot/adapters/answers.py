"""Features in, predictions out: probabilities, the test for unknown images, prediction sets."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cache.errors import UserError
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.image_results import Prediction, PredictionForm, Unreadable, distinct
from fewshot.adapters.predictor import FeaturePredictor
from fewshot.model_selection.conformal import p_values, prediction_sets, thresholds


class Answers:
    """Makes the predictions that are asked for.

    Args:
        predictor: What classifies.
        asked: The form of the predictions.

    Raises:
        UserError: As `require_asked`.
    """

    def __init__(self, predictor: FeaturePredictor, asked: PredictionForm) -> None:
        adapter = predictor.adapter
        require_asked(adapter, asked)
        self._predictor, self._asked = predictor, asked
        self._names = distinct(adapter.classnames)
        self._open_set = adapter.open_set if asked.unknown else None
        self._thresholds = None
        if asked.coverage is not None:
            self._thresholds = thresholds(adapter.held_out, asked.coverage)

    def __call__(self, paths: Sequence[str], features: Tensor) -> Iterator[Prediction]:
        """The predictions of M images, by their (M, D) features.

        Raises:
            UserError: The model gave no numbers.
        """
        probabilities = self._predictor.probabilities(features)
        if not torch.isfinite(probabilities).all():
            raise UserError(
                f"the model gave {self._predictor.adapter.method} no finite numbers; "
                "use --precision fp32"
            )
        p_of: Sequence[float | None] = [None] * len(paths)
        if self._open_set is not None:
            scores = self._open_set.score.score(self._predictor.joint(features))
            p_of = p_values(scores, self._open_set.held_out).tolist()
        # Not topk, which leaves the order of equals to chance.
        p, classes = probabilities.sort(dim=1, descending=True, stable=True)
        sets: Sequence[tuple[str, ...] | None] = [None] * len(paths)
        if self._thresholds is not None:
            inside = prediction_sets(probabilities, self._thresholds).gather(1, classes)
            sets = [self._named(ids[mask]) for ids, mask in zip(classes, inside, strict=True)]
        labeled: Sequence[tuple[tuple[str, ...], tuple[float, ...]] | tuple[None, None]]
        labeled = [(None, None)] * len(paths)
        rule = self._predictor.adapter.label_rule
        if rule is not None:
            chosen = rule.labels(probabilities).gather(1, classes)
            labeled = [
                (self._named(ids[mask]), tuple(values[mask].tolist()))
                for ids, values, mask in zip(classes, p, chosen, strict=True)
            ]
        k, minimum = self._asked.top, self._asked.min_confidence
        best = zip(paths, classes[:, :k], p[:, :k].tolist(), p_of, sets, labeled, strict=True)
        for path, ids, values, p_value, within, labels in best:
            yield Prediction(
                path, self._named(ids), tuple(values), minimum, p_value, within, *labels
            )

    def each(self, images: Sequence[tuple[str, Tensor | str]]) -> Iterator[Prediction | Unreadable]:
        """The predictions of images in order, classified together.

        Args:
            images: The path of each and its (D,) features, or why it has none.

        Raises:
            UserError: The model gave no numbers.
        """
        paths = [path for path, x in images if isinstance(x, Tensor)]
        features = [x for _, x in images if isinstance(x, Tensor)]
        found = iter(self(paths, torch.stack(features)) if features else ())
        for path, x in images:
            yield Unreadable(path, x) if isinstance(x, str) else next(found)

    def _named(self, ids: Tensor) -> tuple[str, ...]:
        return tuple(self._names[k] for k in ids.tolist())


def require_asked(adapter: Adapter, asked: PredictionForm) -> None:
    """Raise unless an adapter can give predictions in this form.

    Raises:
        UserError: It lacks an open-set score, or enough held-out images; or its images may have
            several labels, and the form is of one.
    """
    if adapter.label_rule is not None:
        given = {
            "--unknown": asked.unknown,
            "--coverage": asked.coverage is not None,
            "--min-confidence": asked.min_confidence > 0,
        }
        wrong = [option for option, one in given.items() if one]
        if wrong:
            raise UserError(
                f"{wrong[0]} is for images of one label, and this adapter gives several, or none; "
                "leave it out"
            )
    if asked.unknown and adapter.open_set is None:
        raise UserError(
            "this adapter cannot recognize unknown images; fit it again by `fewshot auto` or "
            "`fewshot fit … --save`, with three classes or more and some 20 images beyond the "
            "first of each"
        )
    if asked.coverage is not None:
        thresholds(adapter.held_out, asked.coverage)

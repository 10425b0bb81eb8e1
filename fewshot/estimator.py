"""The methods on cached features as one scikit-learn classifier.

    GridSearchCV(FewShotClassifier("gda", text=text), {"method__alpha": [2.0, 8.0]})

Importing this module imports scikit-learn, which the rest of stage 2 does only where it needs it.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError, unknown
from fewshot.method import Method
from fewshot.methods import METHODS
from fewshot.model_selection import tuning
from fewshot.model_selection.protocols import Share
from fewshot.parts.gaussian import class_means
from fewshot.support import SupportSet
from fewshot.text import Text

TUNE = ("none", "cv")
CLASS_MEANS = "class-means"
NESTED = "method__"
FLOATS = (np.float64, np.float32)


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # have no types
    """A method of `METHODS`, fitted to the rows of a feature matrix and their labels.

    The method's hyper-parameters are nested parameters, by scikit-learn's convention:
    `method__alpha` in `set_params`, `GridSearchCV` and the like. Setting one makes a new method;
    none is ever changed. There is no `random_state`: a method that is trained has a `method__seed`,
    and the same seed gives the same classifier.

    Rows may have any scale: they are divided by their norm, unless the method needs them as the
    encoder gave them (`Method.unit_norm`). A row of zeros has no direction: nothing is learned from
    it, and classified it is equally far from everything. All is computed, and given back, in single
    precision. A transductive method classifies the rows of one call together.

    Args:
        method: A name, for its default hyper-parameters, or a method.
        text: The text of the classes by the method's `text_recipe`, of any norm but for `raw-mean`.
            Label -> its row (D,), or a `Text` with names, which are then the labels: further
            classes are left out. Or, where the labels are 0 to C-1, an array (C, D) or a `Text`.
            Or "class-means" to use each class's mean feature in place of text, or None for none.
        blend: The method's share of the logits, 0 to 1, where zero-shot has the rest; "auto" goes
            by how much zero-shot leaves open on the rows given to `fit`. With class means or no
            text, and for methods that use none, the method stands alone.
        tune: "none" uses the hyper-parameters as they are; "cv" starts from them and chooses by
            folds over the rows given to `fit`, as `fewshot.model_selection.tuning.tune` does.

    Attributes:
        classes_: (C,) the labels, sorted.
        n_features_in_: D.
        feature_names_in_: (D,) the columns' names, where `fit` was given a data frame.
        method_: The method, with its hyper-parameters as tuned.
        classifier_: What it made.
    """

    def __init__(
        self,
        method: str | Method = "gda",
        *,
        text: Mapping[Any, ArrayLike] | ArrayLike | Text | None = None,
        tune: str = "none",
        blend: Share = "auto",
    ) -> None:
        self.method = method
        self.text = text
        self.tune = tune
        self.blend = blend

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters; if `deep`, the method's hyper-parameters too, as `method__<name>`."""
        params: dict[str, Any] = super().get_params(deep)
        if deep:
            with suppress(UserError):  # an unknown method is for `fit` to refuse
                method = self._chosen()
                params |= {NESTED + f.name: getattr(method, f.name) for f in fields(method)}
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters, `method__<name>` among them; the method itself is set first.

        Raises:
            UserError: The method has no such hyper-parameter, or not with such a value.
        """
        nested = {k.removeprefix(NESTED): v for k, v in params.items() if k.startswith(NESTED)}
        super().set_params(**{k: v for k, v in params.items() if not k.startswith(NESTED)})
        if nested:
            method = self._chosen()
            known = [field.name for field in fields(method)]
            for name in nested.keys() - set(known):
                raise unknown(f"setting of {method.name}", name, known)
            self.method = replace(method, **nested)
        return self

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit the method.

        Args:
            X: (N, D) features.
            y: (N,) labels of any kind; a method that learns from none takes its classes from them.

        Raises:
            UserError: No such method or protocol, the method needs text and there is none, text of
                other classes or another width than X, one class, or one feature where directions
                are compared.
        """
        rows, targets = validate_data(self, X, y, dtype=FLOATS)
        check_classification_targets(targets)
        if self.tune not in TUNE:
            raise unknown("tuning protocol", str(self.tune), TUNE)
        method = self._chosen()
        self.classes_, labels = np.unique(targets, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError("two classes are needed to tell apart; y has 1 class; add another")
        support = _support(method, rows, labels.astype(np.int64), len(self.classes_))
        text = self._class_text(method, support)
        self.method_, self.classifier_ = tuning.fit_tuned(
            method,
            support,
            text,
            protocol=self.tune,
            logit_scale=getattr(method, "logit_scale", 100.0),
            share=1.0 if isinstance(self.text, str) else self.blend,
        )
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float32]:
        """(M, C) logits of (M, D) features; of two classes (M,), the second's less the first's."""
        logits = self._logits(X)
        return (logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits).numpy()

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """(M, C) probabilities of (M, D) features: the softmax of the logits."""
        return torch.softmax(self._logits(X), dim=1).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """(M,) labels of (M, D) features."""
        nearest = self._logits(X).argmax(dim=1).numpy()
        labels: NDArray[Any] = self.classes_[nearest]
        return labels

    def _chosen(self) -> Method:
        """The method, by whatever it is called.

        Raises:
            UserError: It is none.
        """
        if isinstance(self.method, str):
            if self.method not in METHODS:
                raise unknown("method", self.method, METHODS)
            return METHODS[self.method]()
        if not isinstance(self.method, Method):
            raise UserError(
                f"method must be a name or a method such as GDA(); got {self.method!r}; known "
                f"names: {', '.join(METHODS)}"
            )
        return self.method

    def _class_text(self, method: Method, support: SupportSet) -> Text | None:
        """The text as the method wants it."""
        if self.text is None:
            return None
        if isinstance(self.text, str):
            if self.text != CLASS_MEANS:
                raise unknown("text", self.text, (CLASS_MEANS,))
            means = class_means(support.features, support.labels, support.n_classes)
            return Text(normalize(means))
        text, names = self.text, None
        if isinstance(text, Mapping):
            text, names = _stacked(text.values()), tuple(text)
        if not isinstance(text, Text):
            try:
                rows = check_array(text, dtype=FLOATS, input_name="text")
            except TypeError as error:
                raise UserError(f"text must be rows of numbers; got {text!r} ({error})") from None
            if not rows.any(axis=1).all():
                raise UserError("text must have a direction for each class; got a row of zeros")
            text = Text(_features(rows, unit_norm=method.text_recipe != "raw-mean"))
        names = text.names if names is None else names
        if names is not None:
            text = replace(text.classes(self._rows_of(names)), names=None)
        elif not np.array_equal(self.classes_, np.arange(support.n_classes)):
            raise UserError(
                f"text without names needs labels 0 to C-1; got {self.classes_.tolist()[0]!r}; "
                "give each label with its row, such as dict(zip(store.classnames, store.text()))"
            )
        wanted = (support.n_classes, support.features.shape[1])
        if tuple(text.features.shape) != wanted:
            raise UserError(
                f"text must have a row for each of the {wanted[0]} classes of y and X's {wanted[1]}"
                f" columns; got {tuple(text.features.shape)}; give each label with its row, and "
                "split so that every part has all classes"
            )
        return text

    def _rows_of(self, names: Sequence[Any]) -> Tensor:
        """(C,) the place of each label among the names.

        Raises:
            UserError: A label has none, or a name occurs twice.
        """
        place = {name: row for row, name in enumerate(names)}
        if len(place) < len(names):
            raise UserError("text has two rows of one name; give each class a name of its own")
        for label in self.classes_.tolist():
            if label not in place:
                raise unknown("class of the text", str(label), map(str, names))
        return torch.tensor([place[label] for label in self.classes_.tolist()])

    def _logits(self, X: ArrayLike) -> Tensor:
        """(M, C)."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=FLOATS, reset=False)
        with torch.inference_mode():
            return self.classifier_.logits(_features(rows, unit_norm=self.method_.unit_norm))


def _stacked(rows: Iterable[ArrayLike]) -> NDArray[Any]:
    """(C, D) rows as one array.

    Raises:
        UserError: They are not all (D,).
    """
    arrays = [np.asarray(row) for row in rows]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1 or arrays[0].ndim != 1:
        raise UserError(
            f"text must have rows of one length, (D,) each; got {sorted(shapes)}; give each label "
            "with its row"
        )
    return np.stack(arrays)


def _support(
    method: Method, X: NDArray[Any], labels: NDArray[np.int64], n_classes: int
) -> SupportSet:
    """The rows to learn from, as the method wants them."""
    if method.unit_norm:
        if X.shape[1] == 1:
            raise UserError(
                f"{method.name} compares directions, of which one feature has but two; got "
                "n_features = 1; add features, or use linear-probe"
            )
        has_direction = X.any(axis=1)
        X, labels = X[has_direction], labels[has_direction]
    return SupportSet(
        features=_features(X, unit_norm=method.unit_norm),
        labels=torch.from_numpy(labels),
        n_classes=n_classes,
        unit_norm=method.unit_norm,
    )


def _features(X: NDArray[Any], *, unit_norm: bool) -> Tensor:
    """(M, D) float32, a copy; rows at unit norm if they should be, but for those of zeros."""
    if not unit_norm:
        return torch.from_numpy(X.astype(np.float32))
    X = X.astype(np.float64)
    # The largest entry first: the squares of great ones overflow, and those of small ones vanish.
    X /= _or_one(np.abs(X).max(axis=1, keepdims=True))
    X /= _or_one(np.linalg.norm(X, axis=1, keepdims=True))
    return torch.from_numpy(X.astype(np.float32))


def _or_one(divisors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(divisors == 0, 1.0, divisors)

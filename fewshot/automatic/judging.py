"""The methods on labeled images: each judged by cross-validation, the best fitted to all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.errors import UserError, unknown
from cache.store import FeatureStore
from fewshot.automatic.candidates import Candidates, candidates
from fewshot.fitted import Fitted
from fewshot.fitting import fit
from fewshot.method import Method
from fewshot.methods import METHODS, ZeroShot
from fewshot.model_selection import tuning
from fewshot.model_selection.cross_validation import (
    Failed,
    OutOfFold,
    SupportOf,
    TextFor,
    cross_validate,
)
from fewshot.model_selection.folds import folds
from fewshot.model_selection.near_duplicates import scenes
from fewshot.model_selection.race import GivenUp, Tried, race, try_all
from fewshot.model_selection.selection import Selection, select
from fewshot.settling import configured
from fewshot.store_features import class_text, support_set
from fewshot.support import SupportSet
from fewshot.text import Text

# Where each class has but one image nothing can be judged, so a method has to be taken on trust.
# Accuracy of one image per class on val images or further train images, means of five draws, of
# stack, of ProKeR and of zero-shot: 75.9, 74.8 and 69.8 on UCF101 (CLIP ViT-B/16), 88.4, 88.3 and
# 88.3 on Food101 (ViT-B/16), 90.9, 89.2 and 81.2 on WHU-RS19 (ViT-B/32); by the bundled model,
# 91.0, 91.2 and 90.0 on digits and 26.8, 26.8 and 7.3 on EuroSAT.
ON_TRUST = "stack"


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The methods, cross-validated on all labeled images.

    Attributes:
        labels: (N,) class ids of all labeled images.
        groups: (N,) scenes, which folds keep together.
        fold: (N,) fold in which an image was held out, or -1.
        tried: The methods that could be cross-validated.
        failed: The methods that could not.
        given_up: The methods that could not win any more.
        pending: The methods, or the models, still to be tried: this is the first answer then.
        left_out: Name of a method -> why it was not tried.
        selection: The winner; None where no image could be held out.
        method: The winner, or the method that is taken on trust, before tuning.
    """

    labels: Tensor
    groups: Tensor
    fold: Tensor
    tried: tuple[OutOfFold, ...]
    failed: tuple[Failed, ...]
    given_up: tuple[GivenUp, ...]
    pending: tuple[str, ...]
    left_out: Mapping[str, str]
    selection: Selection | None
    method: Method

    @property
    def winner(self) -> OutOfFold | None:
        """The winner's out-of-fold logits; None where no image could be held out."""
        if self.selection is None:
            return None
        return next(one for one in self.tried if one.name == self.selection.winner)


def to_try(names: Sequence[str] | None, n_images: int, n_classes: int) -> Candidates:
    """Choose the methods to try: those named, or those that suit so many images and classes.

    Raises:
        UserError: No such method, or one that cannot classify an image by itself.
    """
    if names is None:
        return candidates(n_images, n_classes)
    for name in names:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
        if METHODS[name].transductive or METHODS[name].unsupervised():
            raise UserError(
                f"{name} learns from the images to be classified, so labeled ones held out say "
                "nothing of it; leave it out"
            )
    return Candidates(tuple(dict.fromkeys(names)), {}, named=True)


def inputs(store: FeatureStore) -> tuple[SupportOf, TextFor]:
    """Two functions of a method: all labeled images, and the classes' text, as it needs them."""
    train = store.split("train")
    classes = range(store.n_classes)
    supports: dict[tuple[bool, bool], SupportSet] = {}
    texts: dict[str, Text | None] = {}

    def support_of(method: Method) -> SupportSet:
        form = method.unit_norm, method.reads_pooled
        if form not in supports:
            supports[form] = support_set(train, method, None, train.labels, store.n_classes)
        return supports[form]

    def text_for(method: Method) -> Text | None:
        recipe = method.text_recipe
        if recipe not in texts:
            texts[recipe] = class_text(store, method, None, classes)
        return texts[recipe]

    return support_of, text_for


def judge(
    store: FeatureStore,
    asked: Candidates,
    support_of: SupportOf,
    text_for: TextFor,
    *,
    thorough: bool = False,
    seed: int = 1,
    groups: Tensor | None = None,
) -> Iterator[CrossValidation]:
    """Cross-validate the methods on the same folds, and choose the best.

    Args:
        store: The store whose train split has the labeled images.
        asked: The methods to try.
        support_of: Gives the labeled images; see `inputs`.
        text_for: Gives the classes' text; see `inputs`.
        thorough: Try those on all folds that cannot win any more, too. Methods that the user named
            always are.
        seed: Random seed for the folds and for the resamples that judge the choice.
        groups: (N,) scenes, which fix the folds; found in the features without it.

    Yields:
        The first answer, of the quick methods, if others follow; then the last answer.

    Raises:
        UserError: Every method failed.
    """
    labels = torch.from_numpy(store.labels("train"))
    if groups is None:
        groups = scenes(support_of(ZeroShot()).features, labels)  # a method that wants unit norm
    fold = folds(labels, groups=groups, seed=seed)
    if len(torch.unique(groups[fold >= 0])) < 2:
        trusted = configured(store, _on_trust(asked))
        yield CrossValidation(labels, groups, fold, (), (), (), (), {}, None, trusted)
        return
    methods = {name: configured(store, name) for name in asked.names}

    def trial(name: str) -> Iterator[OutOfFold | Failed]:
        return cross_validate(
            methods[name], support_of, text_for, fold,
            groups=groups, logit_scale=store.logit_scale,
        )  # fmt: skip

    def costs(names: Sequence[str]) -> list[float]:
        return [methods[name].practical_size.seconds for name in names]

    def answer(tried: Tried, pending: Sequence[str] = ()) -> CrossValidation:
        selection = select(tried.finished, labels, groups=groups, seed=seed)
        return CrossValidation(
            labels, groups, fold, tried.finished, tried.failed, tried.given_up, tuple(pending),
            asked.left_out, selection, methods[selection.winner],
        )  # fmt: skip

    quick = asked.quick
    others = [name for name in asked.names if name not in quick]
    tried = try_all("quick methods" if others else "methods", quick, trial, costs(quick))
    if others and tried.finished:
        yield answer(tried, others)
    if others and tried.finished and not (thorough or asked.named):
        tried = race(others, trial, costs(others), tried, labels, fold, groups=groups, seed=seed)
    elif others:
        tried += try_all("other methods", others, trial, costs(others))
    if not tried.finished:
        why = "; ".join(f"{one.name}: {one.why}" for one in tried.failed)
        raise UserError(f"no method could be tried ({why}); try others with --methods")
    yield answer(tried)


def _on_trust(asked: Candidates) -> str:
    """Return the method to take where none can be judged.

    Raises:
        UserError: Several were named, and not the one that is taken by default.
    """
    if not asked.named or ON_TRUST in asked.names:
        return ON_TRUST
    if len(asked.names) > 1:
        raise UserError(
            "every class has one photo (or near-duplicates of one), so methods cannot be compared; "
            f"name one of {', '.join(asked.names)} with --methods, or add a photo of each class"
        )
    return asked.names[0]


def refit(
    store: FeatureStore,
    validation: CrossValidation,
    support_of: SupportOf,
    text_for: TextFor,
    *,
    seed: int = 1,
) -> Fitted:
    """Tune the chosen method on all labels and fit it to them."""
    method = validation.method
    if method.takes_support():
        support, text = support_of(method), text_for(method)
        fold = folds(support.labels, groups=validation.groups, n_folds=tuning.MAX_FOLDS, seed=1)
        method, _ = tuning.fit_tuned(
            method, support, text, protocol="cv", logit_scale=store.logit_scale, fold=fold
        )
    return fit(store, method, shots="all", seed=seed, tune="none", views=False)

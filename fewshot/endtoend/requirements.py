"""Conditions under which a method can be trained, each checked before the work."""

from collections.abc import Collection, Sequence

from cache.datasets.source import Source
from cache.errors import UserError, some
from cache.models.encoder import Encoder
from cache.store import FeatureStore
from fewshot.endtoend.clip import EndToEnd, Learner
from fewshot.protocol import Protocol

WITHOUT_STORE = "extract it again, or run `fewshot train --live`, which needs no store"


def require_published(method: EndToEnd, *, changed: Collection[str]) -> None:
    """Raise unless the method can be trained with its published recipe exactly.

    Args:
        method: As published.
        changed: Names of settings that are given, which must be none.

    Raises:
        UserError: A setting is given, or no recipe for few shots of CLIP was published.
    """
    if changed:
        raise UserError(
            f"the official recipe sets everything itself; got {', '.join(sorted(changed))} as "
            "well; leave these out, or official"
        )
    if not method.published:
        raise UserError(
            f"{method.name} has no published recipe for few shots of CLIP; leave official out"
        )


def require_few_shots(method: EndToEnd, protocol: Protocol) -> None:
    """Raise unless an end-to-end method can do what is asked.

    Raises:
        UserError: Unequal classes unless all images are taken, other prompts than the model's,
            another setting than few shots and base to new, or, for a method that learns without
            labels, than an open set.
    """
    unlabeled = method.unsupervised()
    settings = ("few-shot", "open-set") if unlabeled else ("few-shot", "base-to-new")
    unequal = protocol.imbalance is not None and (unlabeled or protocol.shots != "all")
    if protocol.setting not in settings or unequal or protocol.prompt_set:
        source = "all train images without labels" if unlabeled else "few shots"
        got: list[str] = [protocol.setting] if protocol.setting not in settings else []
        got += ["imbalance"] if unequal else []
        got += ["the prompt set"] if protocol.prompt_set else []
        other = ", or use live-ueo" if got == ["open-set"] else ""
        raise UserError(
            f"{method.name} is trained end to end, from {source} and with prompts of its own "
            f"alone; leave {' and '.join(got)} out{other}"
        )


def require_images_of_classes(learner: Learner, classes: Sequence[str]) -> None:
    """Raise if the method starts from images of every class and some have none.

    Args:
        learner: The method, attached.
        classes: The names of those that have none.

    Raises:
        UserError: It does, and they are there.
    """
    if classes and learner.calibrate is not None:
        raise UserError(
            "this method starts from train images of every class, and "
            f"{some(classes)} {'has' if len(classes) == 1 else 'have'} none; use another method, "
            "such as bitfit"
        )


def require_classes(source: Source, name: str) -> None:
    """Raise unless there are classes that a method can tell apart, one for each image.

    Raises:
        UserError: There is one class, or an image may be of several.
    """
    source.require_one_label(name)
    if len(source.classnames) < 2:
        raise UserError(
            f"a classifier needs two classes; {source.dataset} has {len(source.classnames)}; add "
            "another"
        )


def require_splits(source: Source) -> None:
    """Raise unless there are images to train on and images to test.

    Raises:
        UserError: A split is missing.
    """
    for split in ("train", "test"):
        if not source.splits.get(split):
            raise UserError(
                f"{source.dataset} has no {split} split; add one, or train on another dataset"
            )


def require_same_weights(
    store: FeatureStore, encoder: Encoder, remedy: str = "extract it again"
) -> None:
    """Raise unless the store's features are of the weights that are to be trained.

    Args:
        store: The store.
        encoder: The model.
        remedy: The end of the error: what to do.

    Raises:
        UserError: They are of others.
    """
    stored = store.identity["model"].get("weights")
    if stored is not None and stored != encoder.identity["weights"]:
        raise UserError(
            f"{store.path} was made with other weights than {encoder.identity['name']} has now; "
            f"{remedy}"
        )


def require_same_images(store: FeatureStore, source: Source) -> None:
    """Raise unless rows drawn from the source are the same images in the store.

    Raises:
        UserError: Images or labels of a split differ.
    """
    for split in ("train", "test"):
        items = source.splits[split]
        same = store.labels(split).tolist() == [item.label for item in items]
        if not store.imported:  # then it may not know the paths
            same = same and store.paths(split) == [item.path for item in items]
        if not same:
            raise UserError(
                f"{store.path} has other {split} images or labels than {source.dataset} has now; "
                f"{WITHOUT_STORE}"
            )

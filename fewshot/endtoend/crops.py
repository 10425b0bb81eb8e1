"""The crops that a method trains on: its plan's, or those that are asked for instead."""

from dataclasses import replace
from typing import Any

from cache.errors import UserError
from fewshot.endtoend.clip import EndToEnd
from fewshot.endtoend.training_plan import TrainingPlan


def crops_asked(crop_scale: tuple[float, float] | None, flip: bool | None) -> list[str]:
    """The names of those that are given."""
    asked = {"crop_scale": crop_scale, "flip": flip}
    return [name for name, value in asked.items() if value is not None]


def require_shares(crop_scale: tuple[float, float] | None) -> None:
    """Raise unless the scale is a range of shares of an image's area.

    Raises:
        UserError: It is not.
    """
    if crop_scale is not None and not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise UserError(
            f"crop_scale must be two shares of the area, 0 < minimum <= maximum <= 1; got "
            f"{crop_scale[0]} and {crop_scale[1]}; CoOp's are 0.08 and 1"
        )


def learns_live(*, on_images: bool, n_views: int, official: bool) -> bool:
    """True for what learns from images though there are stored features of them.

    A published recipe learns from fresh crops, never from one of each image.

    Args:
        on_images: The image tower is changed, so that stored features are of no use.
        n_views: V of the store that may be used.
        official: As in `run`.
    """
    return on_images or (official and not n_views)


def chosen_by_hand(
    method: EndToEnd,
    *,
    live: bool,
    has_val: bool,
    crop_scale: tuple[float, float] | None,
    flip: bool | None,
    official: bool,
) -> dict[str, Any]:
    """The choices about images that a run's settings record besides the method's fields.

    Args:
        method: What is trained.
        live: It learns from images and not from a store's features.
        has_val: The dataset has a val split.
        crop_scale: As in `run`.
        flip: As in `run`.
        official: As in `run`.
    """
    chosen: dict[str, Any] = {}
    if official and method.val_first:
        chosen["sample"] = "val first" if has_val else "with val"
    if live and crop_scale is not None:
        chosen["crop_scale"] = list(crop_scale)
    if live and flip is not None:
        chosen["flip"] = flip
    return chosen


def augmented(
    plan: TrainingPlan, crop_scale: tuple[float, float] | None, flip: bool | None
) -> TrainingPlan:
    """The plan with other crops, where others are asked for.

    Raises:
        UserError: The scale is no range of shares.
    """
    require_shares(crop_scale)
    return replace(
        plan,
        crop_scale=plan.crop_scale if crop_scale is None else crop_scale,
        flip=plan.flip if flip is None else flip,
    )

"""The plan of a training: how many steps, of how many images, at what rate, of what crops."""

from collections.abc import Sequence
from dataclasses import dataclass

from fewshot.endtoend.privacy import Privacy
from fewshot.training import Schedule


@dataclass(frozen=True)
class TrainingPlan:
    """How long and on what a method trains.

    Attributes:
        iterations: Steps.
        batch_size: Images per step; fewer images than that are one batch.
        drop_last: Leave out the last batch of an epoch where it is not full.
        balanced: Draw an epoch's images with replacement, each class as often as every other.
        schedule: The learning rate.
        crop_scale: Minimum and maximum share of an image's area that an augmented crop keeps.
        flip: Mirror half of the crops; False where a mirrored image is of another class, or none.
        epoch_shares: Of the parameters at the end of each epoch, their share in the final ones;
            empty where these are the last step's. There is one for each epoch, and the last epoch
            is a whole one.
        privacy: What is to be kept of images; then the batch size is that expected of a random
            draw of them. None for nothing.
    """

    iterations: int
    batch_size: int
    schedule: Schedule
    drop_last: bool = False
    balanced: bool = False
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    epoch_shares: Sequence[float] = ()
    privacy: Privacy | None = None

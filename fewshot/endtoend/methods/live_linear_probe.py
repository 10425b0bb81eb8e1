"""A linear probe on live images: CLIP's class texts, trained as a classifier of its features."""

from dataclasses import dataclass
from typing import ClassVar

from cache.errors import UserError
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.peft import Head, Inserted, PEFTMethod


@dataclass(frozen=True)
class LiveLinearProbe(PEFTMethod):
    """The classes' text features, trained; the towers stay as they are.

    With a store it learns from stored features, else from new crops of the images in every epoch.
    """

    head: Head = "trained"

    name: ClassVar[str] = "live-linear-probe"
    summary: ClassVar[str] = "Learns a new description of each class; the model stays as it is."
    unfoldable: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head != "trained":
            raise UserError("head must be trained: a linear probe trains nothing else; got frozen")

    @property
    def on_images(self) -> bool:
        """No: the towers stay as they are."""
        return False

    def insert(self, clip: Clip) -> Inserted:
        """Nothing."""
        return {}, ()

"""Fine-tuning of CLIP's own parameters: those of its norms, its biases, or all of them.

LN-Tune, BitFit and full fine-tuning share this file: each is a choice of parameters and the
learning rate that goes with it; `parts.select` makes the choice.
"""

from dataclasses import dataclass
from typing import ClassVar

from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.select import select


@dataclass(frozen=True)
class LNTune(PEFTMethod):
    """Scale and shift of every norm; a ResNet's are batch norms, which keep their statistics.

    Steps are those of 2SFS, https://arxiv.org/abs/2503.11609, which tunes the norms of both towers
    and keeps the last 40 % of the steps for a linear classifier alone.

    Attributes:
        last: Only the tower's last blocks and what comes after them; 0 for the whole tower.
    """

    iterations_per_shot: int = 300
    # 2SFS's 2e-4 hardly moves the norms of one tower: 4 shots bring digits from 89.4 % to 90.2, and
    # this to 94.4; EuroSAT from 7.4 % to 13.4, and this to 30.8.
    lr: float = 2e-3
    last: int = 0

    name: ClassVar[str] = "ln-tune"
    summary: ClassVar[str] = "Adjusts the few numbers by which the model normalizes what it sees."
    unfoldable: ClassVar[str] = ""

    def insert(self, clip: Clip) -> Inserted:
        """The norms' own parameters."""
        return select(clip.model, self.towers, "norms", self.last), ()


@dataclass(frozen=True)
class BitFit(PEFTMethod):
    """Every bias, those of the norms too. Ben Zaken et al., 2022, https://arxiv.org/abs/2106.10199.

    Attributes:
        last: Only the tower's last blocks and what comes after them; 0 for the whole tower.
    """

    last: int = 0

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = (
        "Adjusts the offsets that the model adds in every layer, and nothing else."
    )
    unfoldable: ClassVar[str] = ""

    def insert(self, clip: Clip) -> Inserted:
        """The biases."""
        return select(clip.model, self.towers, "biases", self.last), ()


@dataclass(frozen=True)
class FullFineTuning(PEFTMethod):
    """Every parameter of a tower, or those of its last blocks.

    Attributes:
        last: Only the tower's last blocks and what comes after them; 0 for the whole tower.
    """

    lr: float = 1e-5
    weight_decay: float = 0.1
    last: int = 0

    name: ClassVar[str] = "full-fine-tuning"
    summary: ClassVar[str] = (
        "Trains the whole image part of the model. Needs many photos and much memory."
    )
    unfoldable: ClassVar[str] = ""

    def insert(self, clip: Clip) -> Inserted:
        """All there is but the temperature."""
        return select(clip.model, self.towers, "all", self.last), ()

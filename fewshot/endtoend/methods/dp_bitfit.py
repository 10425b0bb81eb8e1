"""DP-BiTFiT: BitFit whose gradients are clipped image by image and drowned in noise.

Bu et al., "Differentially Private Bias-Term Fine-tuning of Foundation Models", ICML 2024,
https://arxiv.org/abs/2210.00036. Few parameters take little noise. CLIP's text takes the place of
the classifier that they train with the biases.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from cache.errors import UserError
from fewshot.checks import fraction, positive
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.fine_tuning import BitFit
from fewshot.endtoend.parts.peft import Inserted
from fewshot.endtoend.parts.vit import image_only
from fewshot.endtoend.privacy import Privacy
from fewshot.endtoend.training_plan import TrainingPlan


@dataclass(frozen=True)
class DPBitFit(BitFit):
    """Every bias of the image tower, trained with differential privacy of the few shots.

    Attributes:
        epsilon: How much all steps together may show of any one of the N images.
        delta: Probability with which that bound may fail; 0 for 1/N.
        clip: Maximum norm of the gradient of one image.
        repeatable: Draw noise and batches by the seed. That protects nobody from those who know the
            seed, and is for experiments.
    """

    iterations_per_shot: int = 3
    lr: float = 5e-3
    batch_size: int = 1024
    epsilon: float = 8.0
    delta: float = 0.0
    clip: float = 0.1
    repeatable: bool = False

    name: ClassVar[str] = "dp-bitfit"
    summary: ClassVar[str] = (
        "Adjusts the model's offsets so that nobody can tell which photos it learned from."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        if self.head != "frozen":
            raise UserError(f"{self.name} trains biases only; got head={self.head}; use frozen")
        positive(self, "epsilon", "clip")
        fraction(self, "delta", below_one=True, hint="0 is one over the number of images")

    def insert(self, clip: Clip) -> Inserted:
        """The biases.

        Raises:
            UserError: Precision is float16, whose gradients come scaled.
        """
        if clip.precision == "fp16":
            raise UserError(f"{self.name} does not train in fp16; use --precision bf16 or fp32")
        return super().insert(clip)

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """3 K steps, each of a random draw of the images."""
        plan = super().plan(shots, n_images)
        privacy = Privacy(
            self.epsilon,
            self.delta or 1 / n_images,
            self.clip,
            n_images,
            min(self.batch_size, n_images),
            plan.iterations,
            self.repeatable,
        )
        return replace(plan, privacy=privacy)

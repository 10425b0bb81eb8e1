"""TF-VAEGAN with pseudo-attributes: a GAN that also learns from unlabeled images of new classes.

Wang et al., "Exploiting Semantic Attributes for Transductive Zero-Shot Learning", ICASSP 2023,
https://arxiv.org/abs/2303.09849. A decoder learns attributes from features of the seen classes.
Of an unlabeled image it makes pseudo-attributes, and a second critic compares the image with
features that are generated from them. The first critic, the encoder and the feedback are those of
TF-VAEGAN; see `feedback_networks`. Without unlabeled images only these are left, and at feedback 0
f-VAEGAN. The published code draws unseen classes as often as the test labels have them, and keeps
the epoch that is best on the test split; here no label of an unseen image is read, and the last
epoch counts.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fewshot.checks import non_negative, positive, whole


@dataclass(frozen=True)
class TfVaegan:
    """The settings of TF-VAEGAN with pseudo-attributes.

    Attributes:
        feedback: Weight of what the decoder feeds back to the generator; 0 for none.
        decoding: Weight of the decoder's loss in the generator's.
        critic: Weight of the critics' scores in the generator's loss.
        pseudo: Pseudo-attributes of an unlabeled image: what the decoder makes of it, as published,
            or the mean of the unseen classes' by their zero-shot probabilities.
        prior: How often each unseen class is generated in training: all alike, or as zero-shot
            classification of the unlabeled images estimates.
        images: Features to make of each class.
        latent: Z, length of a latent vector.
        hidden: Units of the hidden layers; 4096 as published, which takes hours on a processor.
        epochs: Passes over the seen images, every second one with feedback.
        lr: Adam's learning rate.
        batch_size: Images per step.
        critic_steps: Steps of the critics per step of the generator.
        decoded: Have the method learn from features beside their decoded attributes and the
            decoder's hidden layer, as published; for methods that need no text.
    """

    feedback: float = 0.1
    decoding: float = 0.1
    critic: float = 10.0
    pseudo: Literal["decoder", "zero-shot"] = "decoder"
    prior: Literal["uniform", "zero-shot"] = "uniform"
    images: int = 16
    latent: int = 64
    hidden: int = 256
    epochs: int = 60
    lr: float = 1e-3
    batch_size: int = 64
    critic_steps: int = 5
    decoded: bool = False

    name: ClassVar[str] = "tf-vaegan"

    def __post_init__(self) -> None:
        non_negative(self, "feedback", "decoding", "critic")
        positive(self, "lr")
        whole(self, "images", "latent", "hidden", "epochs", "batch_size", "critic_steps")

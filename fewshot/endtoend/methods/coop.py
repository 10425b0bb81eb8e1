"""Learned context in front of the class names, in place of "a photo of a".

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022,
https://arxiv.org/abs/2109.01134; its recipe is that of the authors' code, but in float32 on a CPU
and with float32 context everywhere (their context is float16, and some seeds fail by it). The image
tower is frozen, so stored features serve; what all classes share runs through the text tower once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

from torch.optim import Optimizer

from fewshot.checks import non_negative, one_of, positive, whole
from fewshot.endtoend.clip import Clip, EndToEnd, Learner
from fewshot.endtoend.parts.dassl import epochs_plan, momentum_sgd, require_context
from fewshot.endtoend.parts.learned_prompts import ClassPosition, LearnedPrompts
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.training import published_epochs


@dataclass(frozen=True)
class CoOp(EndToEnd):
    """M learned vectors as context tokens; the class's text is [start] context name "." [end].

    Attributes:
        n_ctx: Context tokens, M.
        ctx_init: Words that the context starts from, such as "a photo of a", and which say what
            M is; empty for normal vectors of deviation 0.02.
        class_specific: A context for every class, instead of one for all; ignored with words.
        position: Where the name stands: after the context, in its middle, or before it.
        epochs: Passes over the images; 0 for the published 50, 100 and 200 at 1, 2 to 4, and more
            shots (50 on ImageNet at any).
        lr: Maximum learning rate; SGD with momentum, down along a cosine epoch by epoch.
        weight_decay: Weight decay of SGD.
        batch_size: Images per step.
        text_chunk: Prompts that go through the tower at a time, 0 for all; fewer take less memory
            and a third more work.
        seed: Random seed for the context.
    """

    n_ctx: int = 16
    ctx_init: str = ""
    class_specific: bool = False
    position: ClassPosition = "end"
    epochs: int = 0
    lr: float = 0.002
    weight_decay: float = 5e-4
    batch_size: int = 32
    text_chunk: int = 0
    seed: int = 1

    name: ClassVar[str] = "coop"
    summary: ClassVar[str] = "Learns the words around your class names."
    unfoldable: ClassVar[str] = ""
    published: ClassVar[bool] = True
    pads_words: ClassVar[bool] = False  # with zeros, to n_ctx tokens

    def __post_init__(self) -> None:
        whole(self, "n_ctx", "batch_size")
        whole(self, "epochs", "text_chunk", minimum=0)
        positive(self, "lr")
        non_negative(self, "weight_decay")
        one_of(self, "position", get_args(ClassPosition))

    @property
    def on_images(self) -> bool:
        """No: the image tower stays as it is."""
        return False

    @property
    def reads_prompts(self) -> bool:
        """Yes: the context is new in every step."""
        return True

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """The context is all that is trained; the dataset's templates play no part."""
        prompts = self.prompts(clip, classnames)
        return Learner({"context": prompts.context}, clip.logit_scale, prompts.features)

    def prompts(self, clip: Clip, classnames: Sequence[str]) -> LearnedPrompts:
        """The classes' prompts, with the context as it is before training."""
        return LearnedPrompts.of(
            clip, classnames, n_ctx=self.n_ctx, ctx_init=self.ctx_init, seed=self.seed,
            class_specific=self.class_specific, position=self.position, chunk=self.text_chunk,
        )  # fmt: skip

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """The published number of epochs, each without its last batch if that is not full.

        Raises:
            UserError: Another number of context tokens than of words that they start from.
        """
        if not self.pads_words:
            require_context(self.n_ctx, type(self).n_ctx, self.ctx_init)
        epochs = self.epochs or published_epochs(shots)
        if not self.epochs and n_images >= 1000 * shots:
            epochs = 50
        return epochs_plan(epochs, n_images, self.batch_size, self.lr)

    def optimizer(self, learner: Learner) -> Optimizer:
        """SGD with momentum."""
        return momentum_sgd(learner, self.lr, self.weight_decay)

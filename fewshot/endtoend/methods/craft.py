"""CraFT: prompts found by evolution and logits refined by a network, with a model as a black box.

Wang et al., "Connecting the Dots: Collaborative Fine-tuning for Black-Box Vision-Language Models",
ICML 2024, https://arxiv.org/abs/2402.04050. Differs from the authors' code: one default serves all
datasets, where theirs has five constants for each; directions are as long as the words' embeddings
vary; the deployed prompt is the mean of CMA-ES's distribution, where theirs is the mean of a fresh
population, a draw whose expectation it is; the refiner is as `fewshot.methods.prediction_refiner`
has it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from cache.errors import UserError
from fewshot.checks import fraction, non_negative, positive, whole
from fewshot.endtoend.clip import Clip, EndToEnd, Learner, scaled_cosines
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.parts.black_box import Search, SearchSettings, named
from fewshot.endtoend.parts.learned_prompts import LearnedPrompts
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.parts.refiner import Refiner
from fewshot.training import published_epochs


@dataclass(frozen=True)
class CraFT(EndToEnd):
    """Logits o + g(o), o being CLIP's of the prompt [start] context name "." [end].

    The context evolves by CMA-ES, the network g learns by gradients of its own; of CLIP both see
    the logits alone. With y the labels and p, p' the softmax of o and o + g(o), the context lowers
    CE(o, y) + consistency KL(p' || p) and g lowers CE(o + g(o), y) + consistency KL(p || p').

    Attributes:
        ctx_init: Words that the context starts from.
        queries: How many candidates to ask about; 0 for the published 2,000, 4,000 and 8,000 at 1,
            2 to 4, and more shots. The deployed context of each generation is one more query.
        population: Candidates of a generation.
        latent: Numbers that evolve; random directions, frozen, make a context of them.
        spread: Deviation of the context at step size 1, relative to that of the words' embeddings.
        sigma: First step size.
        bound: Maximum of each number, either way; 0 for none.
        consistency: Weight of both divergences.
        until: Share of the generations, from the first, in which g's divergence counts.
        hidden: Units of g's hidden layer.
        lr: Learning rate of g.
        batch_size: Images per step of g.
        crops: Most crops of each image that the model is asked about.
        text_chunk: Prompts that go through the tower at a time, 0 for all.
        seed: Random seed for directions, candidates and g.
    """

    ctx_init: str = "a photo of a"
    queries: int = 0
    population: int = 40
    latent: int = 512
    spread: float = 1.0
    sigma: float = 1.0
    bound: float = 5.0
    consistency: float = 0.1
    until: float = 1.0
    hidden: int = 256
    lr: float = 1e-3
    batch_size: int = 256
    crops: int = 10
    text_chunk: int = 0
    seed: int = 1

    name: ClassVar[str] = "craft"
    summary: ClassVar[str] = (
        "Finds words around your class names and corrects the scores, for a model that shows "
        "scores alone."
    )
    unfoldable: ClassVar[str] = "a network corrects its logits"
    step_name: ClassVar[str] = "generation"

    def __post_init__(self) -> None:
        whole(self, "latent", "hidden", "batch_size", "crops")
        whole(self, "population", minimum=2)
        whole(self, "queries", "text_chunk", minimum=0)
        positive(self, "spread", "sigma", "lr")
        non_negative(self, "bound", "consistency")
        fraction(self, "until", hint="1 is all generations")
        if 0 < self.queries < self.population:
            raise UserError(
                f"queries must be enough for a generation of {self.population}; got "
                f"{self.queries}; ask for more, or set a smaller population"
            )
        if not self.ctx_init.strip():
            raise UserError("ctx_init must be words to start from; got none; try 'a photo of a'")

    @property
    def on_images(self) -> bool:
        """No: the image tower stays as it is."""
        return False

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """The context and g are what is learned; the dataset's templates play no part."""
        prompts = CoOp(ctx_init=self.ctx_init, text_chunk=self.text_chunk).prompts(clip, classnames)
        refiner = Refiner.untrained(
            prompts.context.detach().float(), len(classnames), self.hidden, seed=self.seed
        )
        g = {name: nn.Parameter(value) for name, value in named(refiner).items()}

        def refine(logits: Tensor) -> Tensor:
            return refiner.with_parameters(tuple(g.values()))(logits)

        def search(crops: Callable[[int], Tensor], labels: Tensor, generations: int) -> Search:
            return Search(
                FewShotScores.of(clip, prompts, crops, self.crops),
                labels,
                prompts.context.detach().clone(),
                refiner,
                SearchSettings(
                    latent=self.latent, spread=self.spread, sigma=self.sigma, bound=self.bound,
                    population=self.population, consistency=self.consistency,
                    plain_after=self.until * generations, lr=self.lr, batch_size=self.batch_size,
                    seed=self.seed,
                ),
            )  # fmt: skip

        return Learner(
            {"context": prompts.context, **g},
            clip.logit_scale,
            prompts.features,
            refine=refine,
            search=search,
        )

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """As many generations as the queries are enough for, on crops of half the area or more."""
        queries = self.queries or 40 * published_epochs(shots)
        return TrainingPlan(
            iterations=max(1, queries // self.population),
            batch_size=self.batch_size,
            schedule=lambda epoch, done: self.lr,
            crop_scale=(0.5, 1.0),
        )

    def optimizer(self, learner: Learner) -> Optimizer:
        """Of g alone; the search has it, and it serves where gradients of g are taken otherwise."""
        return Adam([p for n, p in learner.parameters.items() if n != "context"], lr=self.lr)


@dataclass(frozen=True, eq=False)
class FewShotScores:
    """All that a search gets of a model: the logits of the few shots under any context.

    Attributes:
        clip: The model.
        prompts: The classes' prompts.
        features: (V, N, D) of V crops of each image.
    """

    clip: Clip
    prompts: LearnedPrompts
    features: Tensor

    @classmethod
    def of(
        cls, clip: Clip, prompts: LearnedPrompts, crops: Callable[[int], Tensor], most: int
    ) -> "FewShotScores":
        """Of the (N, D) crops by their number, `most` at most, and no crop twice."""
        found = [crops(0)]
        for i in range(1, most):
            another = crops(i)
            if torch.equal(another, found[0]):  # a store has so many and no more
                break
            found.append(another)
        return cls(clip, prompts, torch.stack(found).to(clip.device))

    @torch.no_grad()
    def logits(self, context: Tensor) -> Tensor:
        """(V, N, C) logits."""
        with self.clip.autocast():
            text = self.prompts.features(context)
            return scaled_cosines(self.clip.logit_scale, self.features, text)

"""Learning from a model that answers with logits and shows nothing else of itself.

Nothing here can reach the model: a search holds an `Oracle`, which has one method.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cache.errors import UserError
from fewshot.parts.optimizers import Adam
from fewshot.parts.refiner import Refiner, consistent_loss
from fewshot.training import step_seed


class Oracle(Protocol):
    """A model behind an interface."""

    def logits(self, context: Tensor) -> Tensor:
        """(V, N, C) logits of V crops of the N few shots, of a context (M, W); one query."""
        ...


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search.

    Attributes:
        latent: Z, numbers that evolve.
        spread: Deviation of a context's entries at step size 1, in that of the words' embeddings.
        sigma: CMA-ES's first step size.
        bound: Of every number, either way; 0 for none.
        population: Candidates of a generation.
        consistency: Weight of the divergence, in the loss of prompts and in that of the refiner.
        plain_after: Generation from which on the refiner's loss is without the divergence.
        lr: The refiner's learning rate.
        batch_size: Images per step of the refiner.
        seed: Random seed for directions, candidates and the order of the images.
    """

    latent: int
    spread: float
    sigma: float
    bound: float
    population: int
    consistency: float
    plain_after: float
    lr: float
    batch_size: int
    seed: int


class Search:
    """CraFT: a context by CMA-ES and a refiner by gradients, a generation of each in turn.

    A context is words + A z, with A (M W, Z) normal and frozen. A candidate z costs a query, and
    its loss is `consistent_loss` of its logits, kept to the refined ones. The deployed z is the
    mean of the distribution that the candidates are drawn from. It costs a query as well, and the
    refiner then takes one pass over its logits, kept to the plain ones.

    Attributes:
        context: (M, W) the deployed one.
        refiner: Trained in place.
        queries: How often the oracle was asked.

    Args:
        oracle: The model.
        labels: (N,).
        words: (M, W) the context to start from.
        refiner: Untrained.
        settings: The rest.

    Raises:
        UserError: The package cma is not installed.
    """

    def __init__(
        self,
        oracle: Oracle,
        labels: Tensor,
        words: Tensor,
        refiner: Refiner,
        settings: SearchSettings,
    ) -> None:
        self.context, self.queries = words, 0
        self._oracle, self._labels, self._words, self._settings = oracle, labels, words, settings
        self._adam = Adam(*refiner.parameters(), weight_decay=0.0, decoupled=False)
        self.refiner = refiner.with_parameters(self._adam.values)
        generator = torch.Generator().manual_seed(settings.seed)
        drawn = torch.randn(words.numel(), settings.latent, generator=generator)
        scale = settings.spread * float(words.float().std()) / settings.latent**0.5
        self._directions = scale * drawn.to(words)
        self._evolution = _evolution(settings)
        self._losses: list[list[float]] = []  # of each generation's candidates

    @torch.no_grad()
    def step(self) -> tuple[float, float]:
        """Live through a generation; the refiner's mean loss and its accuracy on the few shots."""
        candidates = self._evolution.ask()
        losses = [self._loss(self._context_of(z)) for z in candidates]
        self._evolution.tell(candidates, losses)
        self._losses.append(losses)
        self.context = self._context_of(self._evolution.result.xfavorite)
        return self._refine(self._asked(self.context))

    def state(self) -> dict[str, Tensor]:
        """All that the next generation depends on; CMA-ES's own state follows from the losses."""
        losses = torch.tensor(self._losses, dtype=torch.float64)
        return {"losses": losses, "queries": torch.tensor(self.queries), **self._adam.state()}

    def learned(self) -> dict[str, Tensor]:
        """Name -> what has been learned so far."""
        return {"context": self.context, **named(self.refiner)}

    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Go back to where the state was saved, without a query.

        Raises:
            KeyError: Something is missing.
        """
        for losses in saved["losses"].tolist():
            self._evolution.tell(self._evolution.ask(), losses)
            self._losses.append(losses)
        if self._losses:
            self.context = self._context_of(self._evolution.result.xfavorite)
        self.queries = int(saved["queries"])
        self._adam.load_state(saved)

    def _context_of(self, z: Any) -> Tensor:
        shift: Tensor = self._directions @ torch.from_numpy(np.asarray(z)).to(self._directions)
        return self._words.add(shift.view_as(self._words))

    def _asked(self, context: Tensor) -> Tensor:
        self.queries += 1
        return self._oracle.logits(context)

    def _loss(self, context: Tensor) -> float:
        """A candidate's, on the first crop of each image."""
        plain = self._asked(context)[0]
        refined = self.refiner(plain)
        return float(consistent_loss(plain, self._labels, refined, self._settings.consistency))

    def _refine(self, logits: Tensor) -> tuple[float, float]:
        """One pass over a crop of each image, the next one in every generation."""
        done, settings = len(self._losses) - 1, self._settings
        plain = logits[done % len(logits)]
        consistency = settings.consistency if done < settings.plain_after else 0.0
        generator = torch.Generator().manual_seed(step_seed(settings.seed, done))
        order = torch.randperm(len(plain), generator=generator).to(plain.device)
        for rows in torch.split(order, settings.batch_size):
            self.refiner.backward(
                plain[rows], self._labels[rows], consistency, self._adam.gradients
            )
            self._adam.step(settings.lr)
        refined = self.refiner(plain)
        loss = float(consistent_loss(refined, self._labels, plain, consistency))
        return loss, float((refined.argmax(dim=1) == self._labels).float().mean())


def _evolution(settings: SearchSettings) -> Any:
    """CMA-ES with random numbers of its own."""
    try:
        import cma
    except ImportError:
        raise UserError(
            "prompts of a black box are found by the package cma, which is not installed; run: "
            "pip install 'fewshot-clip[blackbox]'"
        ) from None
    draw = np.random.default_rng(settings.seed % 2**64)  # which takes no negative one
    bounds = [-settings.bound, settings.bound]
    options: dict[str, Any] = {
        "popsize": settings.population,
        "bounds": bounds if settings.bound else None,
        "randn": lambda *shape: draw.standard_normal(shape),
        "seed": np.nan,  # which leaves numpy's global generator alone
        "verbose": -9,
    }
    return cma.CMAEvolutionStrategy(np.zeros(settings.latent), settings.sigma, options)


def named(refiner: Refiner) -> dict[str, Tensor]:
    """The refiner's parameters by name, in their order."""
    names = (f"refiner.{name}" for name in ("w1", "b1", "w2", "b2"))
    return dict(zip(names, refiner.parameters(), strict=True))

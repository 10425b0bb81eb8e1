"""Stacking: the logits of six classifiers added up, each as much as held-out images say.

Wolpert, "Stacked generalization", Neural Networks 1992; with weights that are not negative, as in
Breiman, "Stacked regressions", Machine Learning 1996, and van der Laan et al., "Super Learner",
2007. Differs from all three: weights are pulled toward a prior, which alone counts where no image
can be held out; and the prior follows from how much the class names leave open.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot.abilities import Held
from fewshot.checks import non_negative
from fewshot.classifier import LinearClassifier
from fewshot.method import Grid, Method, PracticalSize
from fewshot.methods.gda import GDA
from fewshot.methods.proker import ProKeR
from fewshot.methods.text_probe import TextProbe
from fewshot.methods.zero_shot import ZeroShot
from fewshot.parts.doubt import doubt, trust
from fewshot.parts.kernels import KernelClassifier, WhitenedKernel
from fewshot.parts.pooling import pool_weights
from fewshot.parts.whitened_probe import whitened_probe
from fewshot.parts.whitening import Whitening
from fewshot.support import SupportSet
from fewshot.text import Text, features_of

Weight = Literal["prior"] | float

# The prior where names say all, and where they say nothing; between, in proportion to the doubt.
# GDA's is 0: it says what the whitened kernel says, so held-out images have to ask for it.
CLEAR = {
    "zero_shot": 0.1,
    "gda": 0.0,
    "proker": 0.1,
    "text_probe": 0.4,
    "whitened_probe": 0.5,
    "whitened_kernel": 0.5,
}
OBSCURE = {"proker": 0.15, "whitened_probe": 0.1, "whitened_kernel": 0.4}
FULL_DOUBT = 0.18  # at this doubt one shot is trusted in full
# Toward the prior: a weight 0.25 off costs as much as ten images one nat off where bases learned
# from one shot, and so without a covariance within classes; with K shots a K-th of that.
PULL = 320.0
ENOUGH = 500  # held-out images: the weights are but six numbers
MAX_KERNEL = 4096  # images up to which kernels take part: their cost is cubic
KERNELS = ("proker", "whitened_kernel")
WHITENED_KERNEL = ProKeR(beta=6.0, lmbda=0.1, correction="exact", margin=50.0)
NEED_TEXT = ("zero_shot", "text_probe")

Base = LinearClassifier | KernelClassifier | WhitenedKernel


@dataclass(frozen=True)
class Stack(Method):
    """Logits sum_b w_b z_b(f), w_b >= 0, of the bases' logits z_b, each base at its defaults.

    The bases are zero-shot; GDA's Gaussian term without text; ProKeR; the text probe; the probe of
    `parts.whitened_probe`; and a kernel regression of the labels alone, without text, on whitened
    features. Adding logits multiplies probabilities, each to the power of its weight (a log-linear
    pool), so weights are inverse temperatures too and need not sum to one. All bases but the two
    kernels are linear, so the sum is a linear classifier, and the kernels that have a weight.

    Tuning finds the weights: they minimize the log-loss of held-out images, which no base has
    learned from, plus PULL/2K |w - prior|^2 where these bases had K images per class. With d
    zero-shot's doubt (see `parts.doubt`) and now K images per class in all,

        prior = s ((1 - d) CLEAR + d OBSCURE) + (1 - s) zero-shot,   s = min(1, sqrt(K) (d/0.18)^2).

    Without text d is 1. A base of weight 0 is not fitted; one that is set to 0 has no part in
    tuning either.

    Attributes:
        zero_shot: Weight of zero-shot, or `prior` for that of the formula; likewise for all bases.
        gda: Weight of the Gaussian term.
        proker: Weight of ProKeR; 0 beyond 4096 images.
        text_probe: Weight of the text probe.
        whitened_probe: Weight of the whitened probe.
        whitened_kernel: Weight of the kernel regression on whitened features; 0 beyond 4096 images.
        logit_scale: CLIP's inverse temperature.
        seed: Random seed for the text probe's batches.
    """

    zero_shot: Weight = "prior"
    gda: Weight = "prior"
    proker: Weight = "prior"
    text_probe: Weight = "prior"
    whitened_probe: Weight = "prior"
    whitened_kernel: Weight = "prior"
    logit_scale: float = 100.0
    seed: int = 1

    name: ClassVar[str] = "stack"
    summary: ClassVar[str] = (
        "Asks several methods at once and trusts each as far as your photos bear it out. The one "
        "to use when in doubt."
    )
    blends: ClassVar[bool] = False  # zero-shot is one of the bases
    grid: ClassVar[Grid] = dict.fromkeys(CLEAR, ("prior",))  # tuning finds them; see `tuned`
    practical_size: ClassVar[PracticalSize] = PracticalSize(
        images=2000, logits=100_000, seconds=1.8
    )
    saved_as: ClassVar[tuple[type, ...]] = (
        LinearClassifier,
        KernelClassifier,
        WhitenedKernel,
        Whitening,
    )

    def __post_init__(self) -> None:
        non_negative(self, *CLEAR, words=("prior",), hint="0 leaves the base out")

    def fit(self, support: SupportSet, text: Text | None) -> Base:
        """Fit the bases and add them up."""
        weights = self._weights(support, text)
        bases = self._bases(support, text, [name for name, w in weights.items() if w > 0])
        return _sum([(weights[name], base) for name, base in bases.items()], weights)

    def tuned(
        self, free: Collection[str], support: SupportSet, text: Text | None, held: Iterable[Held]
    ) -> Self:
        """Return the method with its weights found on held-out images.

        Args:
            free: The weights to find; the others stay as they are.
            support: All labeled images, from which the prior is.
            text: The classes' text or None.
            held: See `TunesItself`.
        """
        start = self._weights(support, text)
        names = self._names(support, text)
        logits, labels, shots = [], [], support.shots
        for train, features, truth in held:
            bases = self._bases(train, text, names).values()
            logits.append(torch.stack([base.logits(features) for base in bases]))
            labels.append(truth)
            shots = min(shots, train.shots)
            if sum(map(len, labels)) >= ENOUGH:
                break
        prior = torch.tensor([start[name] for name in names], dtype=torch.float64)
        moves = torch.tensor([name in free for name in names])
        found = pool_weights(logits, labels, prior, moves, pull=PULL / shots)
        return replace(self, **start | dict(zip(names, found.tolist(), strict=True)))

    def fit_new_classes(
        self, support: SupportSet | None, text: Text | None, new: Text
    ) -> LinearClassifier:
        """Classify classes without images by zero-shot: the other bases know nothing of them."""
        return ZeroShot(self.logit_scale).fit(None, new)

    def _names(self, support: SupportSet, text: Text | None) -> list[str]:
        """The bases that may have a weight."""
        out = {name for name in CLEAR if getattr(self, name) == 0}
        if text is None:
            out.update(NEED_TEXT)
        if len(support.labels) > MAX_KERNEL:
            out.update(KERNELS)
        return [name for name in CLEAR if name not in out]

    def _weights(self, support: SupportSet, text: Text | None) -> dict[str, float]:
        """Base -> its weight."""
        texts = self._texts(text)
        d = 1.0 if texts is None else doubt(support, texts)
        s = trust(d, support.shots, FULL_DOUBT)
        prior = {
            name: s * ((1 - d) * clear + d * OBSCURE.get(name, 0.0))
            for name, clear in CLEAR.items()
        }
        prior["zero_shot"] += 1 - s
        weights = dict.fromkeys(CLEAR, 0.0)
        for name in self._names(support, text):
            given = getattr(self, name)
            weights[name] = prior[name] if given == "prior" else float(given)
        if not any(weights.values()):
            left = ", ".join(name for name in CLEAR if name not in NEED_TEXT)
            without = "" if text else f"; without text only {left} are left"
            raise UserError(f"every weight of {self.name} is 0{without}; give one of them some")
        return weights

    def _bases(
        self, support: SupportSet, text: Text | None, names: Iterable[str]
    ) -> dict[str, Base]:
        """Base -> its classifier."""
        scale, texts = self.logit_scale, self._texts(text)
        fits: dict[str, Callable[[], Base]] = {
            "zero_shot": lambda: ZeroShot(scale).fit(support, text),
            "gda": lambda: GDA().fit(support, None),
            "proker": lambda: ProKeR(logit_scale=scale).fit(support, text),
            "text_probe": lambda: TextProbe(logit_scale=scale, seed=self.seed).fit(support, text),
            "whitened_probe": lambda: whitened_probe(
                support, texts, 1.0 if texts is None else doubt(support, texts)
            ),
            "whitened_kernel": lambda: _whitened_kernel(support),
        }
        return {name: fits[name]() for name in names}

    def _texts(self, text: Text | None) -> Tensor | None:
        """(C, D) class texts at unit norm times the logit scale."""
        return None if text is None else self.logit_scale * normalize(features_of(text), dim=1)


def _whitened_kernel(support: SupportSet) -> WhitenedKernel:
    """Kernel ridge regression of the labels on whitened features."""
    whitening = Whitening.of(support)
    return WhitenedKernel(WHITENED_KERNEL.fit(whitening.support(support), None), whitening)


def _sum(parts: list[tuple[float, Base]], stats: Mapping[str, float]) -> Base:
    """The weighted sum of classifiers, of which one at most is a kernel of either kind."""
    whitened = next(((w, base) for w, base in parts if isinstance(base, WhitenedKernel)), None)
    plain = [(w, base) for w, base in parts if not isinstance(base, WhitenedKernel)]
    other = _plain_sum(plain, stats) if plain else None
    if whitened is None:
        assert other is not None  # some base has a weight
        return other
    w, base = whitened
    kernel = replace(base.kernel, coefficients=w * base.kernel.coefficients)
    return replace(base, kernel=kernel, other=other, stats=stats)


def _plain_sum(
    parts: list[tuple[float, LinearClassifier | KernelClassifier]], stats: Mapping[str, float]
) -> LinearClassifier | KernelClassifier:
    """The weighted sum of linear classifiers and of a kernel, or without one a linear one."""
    weight, bias, kernel = torch.zeros(()), torch.zeros(()), None
    for w, base in parts:
        if isinstance(base, KernelClassifier):
            kernel = replace(base, coefficients=w * base.coefficients)
            matrix, offset = base.anchor, None
        else:
            matrix, offset = base.weight, base.bias
        weight = weight if matrix is None else weight + w * matrix.double()
        bias = bias if offset is None else bias + w * offset.double()
    if kernel is None:
        return LinearClassifier(weight.float(), bias.float(), stats)
    like = kernel.samples
    if weight.ndim == 0:  # ProKeR alone, without text
        return replace(kernel, stats=stats)
    return replace(kernel, anchor=weight.to(like), bias=bias.to(like), stats=stats)

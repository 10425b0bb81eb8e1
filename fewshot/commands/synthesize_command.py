"""`synthesize`: make features of classes without images, and keep them for `fit` and `bench`."""

from typing import TYPE_CHECKING, Annotated

import typer

from fewshot.commands.fit_command import chosen_store
from fewshot.commands.options import (
    DATA,
    FEW_SHOT,
    SEED,
    PromptsOption,
    StoredDatasetOption,
    StoreOption,
    parse_ints,
)
from fewshot.commands.terminal import print_table, say

if TYPE_CHECKING:
    from fewshot.synthesizing import KeptFeatures

COLLAPSED = 0.1  # nats; z says no more than the KL divergence of an image, so next to nothing


def synthesize(
    dataset: StoredDatasetOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model whose store to use. [default: the one extracted last]",
            rich_help_panel=DATA,
        ),
    ] = None,
    generator: Annotated[
        str,
        typer.Option(
            metavar="GENERATOR",
            help="ship, 'ship beta=0.1', or tf-vaegan, which learns from unlabeled images as well.",
        ),
    ] = "ship",
    per_class: Annotated[
        int | None,
        typer.Option(min=1, help="Features to make of each class. [default: the generator's, 16]"),
    ] = None,
    shots: Annotated[
        str,
        typer.Option(
            metavar="K[,K…]", help="Training images of each base class.", rich_help_panel=FEW_SHOT
        ),
    ] = "16",
    seed: Annotated[
        str,
        typer.Option(
            *SEED,
            metavar="S[,S…]",
            help="Random seed for drawing the few shots and for training the generator.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = "1",
    prompts: PromptsOption = None,
    store: StoreOption = None,
) -> None:
    """Make features of class names, for methods to learn from.

    They are kept beside the store. With the same generator, shots and seed, `fit` and `bench`
    --synthesize read them and train no generator.
    """
    from fewshot.synthesis.generators import generator_of
    from fewshot.synthesizing import require_one_model
    from fewshot.synthesizing import synthesize as kept

    words = generator if per_class is None else f"{generator} images={per_class}"
    generator_of(words)  # a mistake in it shows before a store is looked for
    draws = [(k, s) for k in parse_ints("--shots", shots) for s in parse_ints("--seed", seed)]
    require_one_model(model)
    opened = chosen_store(store, dataset, model)
    for k, s in draws:
        _print(kept(opened, words, shots=k, seed=s, prompt_set=prompts))


def _print(kept: "KeptFeatures") -> None:
    """The means of every epoch on stdout, and on stderr what came of it and where it is."""
    from fewshot.synthesis.kept_files import summary

    names = kept.card.log
    rows = [
        (str(number), *(f"{epoch[name]:.4g}" for name in names))
        for number, epoch in enumerate(kept.made.log, start=1)
    ]
    print_table(("epoch", *names), rows)
    last = kept.made.log[-1]["kl"]
    if last < COLLAPSED:
        say(
            f"the posterior collapsed: its KL divergence is {last:.2g} nats, so z says nothing of "
            "an image, and features of a class are its text with noise"
        )
    say(f"{summary(kept.card)}; {kept.card.seconds:.1f} s")
    say(f"{'kept' if kept.new else 'kept before, nothing was trained'}: {kept.path}")
    say(f"read by: {kept.card.reader()}")

"""`synthesize`: make features of classes without images, and keep them for `fit` and `bench`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import UserError
from fewshot.commands.chosen_store import chosen_store
from fewshot.commands.options import (
    DATA,
    FEW_SHOT,
    SEED,
    DeviceOption,
    PromptsOption,
    StoredDatasetOption,
    StoreOption,
)
from fewshot.commands.parsing import parse_ints
from fewshot.commands.terminal import print_table, say

if TYPE_CHECKING:
    from cache.store import FeatureStore
    from fewshot.synthesis.ship import FeatureDecoder
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
            help="ship, 'ship beta=0.1', or tf-vaegan, which learns from unlabeled images as well. "
            "ship reads prompts by the model's text tower where the model can be loaded; "
            "'ship decoder=text' needs none.",
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
    device: DeviceOption = "auto",
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
    words, decoder_of = _decoded(words, opened, device)
    for k, s in draws:
        decoder = None if decoder_of is None else partial(decoder_of, s)
        _print(kept(opened, words, shots=k, seed=s, prompt_set=prompts, decoder=decoder))


def _decoded(
    words: str, store: "FeatureStore", device: str
) -> tuple[str, "Callable[[int], FeatureDecoder] | None"]:
    """The generator by its decoder's name, and what makes a decoder with a text tower of a seed.

    Where SHIP's is not chosen, it is the tower of the store's model, if that can be had.

    Raises:
        UserError: The tower is asked for and cannot be had.
    """
    from fewshot.synthesis.generators import described, generator_of
    from fewshot.synthesis.ship import Ship

    chosen = generator_of(words)
    if not isinstance(chosen, Ship) or not store.text_sets:
        return words, None
    asked = any(word.startswith("decoder=") for word in words.split())
    if asked and chosen.decoder == "text":
        return words, None
    try:
        decoder_of = _of_tower(store, device)
    except UserError as error:
        if asked:
            raise
        say(f"features are made of class texts, not of prompts: {error}")
        return words, None
    return described(replace(chosen, decoder="tower")), decoder_of


def _of_tower(store: "FeatureStore", device: str) -> "Callable[[int], FeatureDecoder]":
    """A maker of a decoder of a seed.

    Raises:
        UserError: The store's model cannot be had, or its text tower takes no embeddings.
    """
    from cache.models.loading import load
    from fewshot.endtoend.clip import Clip
    from fewshot.endtoend.prompt_decoder import PromptDecoder
    from fewshot.endtoend.requirements import require_same_weights
    from fewshot.endtoend.text_tower import require_open_clips

    if store.imported:
        raise UserError(f"{store.path} was imported, so the weights behind it are not known")
    encoder = load(store.model, device=device, precision="fp32")
    require_same_weights(store, encoder)
    clip = Clip.of(encoder)
    require_open_clips(clip.model)
    return lambda seed: PromptDecoder(clip, store.classnames, seed)


def _print(kept: "KeptFeatures") -> None:
    """The means of every epoch on stdout, and on stderr what came of it and where it is."""
    from fewshot.synthesis.generators import generator_of
    from fewshot.synthesis.kept_files import summary
    from fewshot.synthesis.ship import Ship

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
    generator = generator_of(kept.card.generator)
    if isinstance(generator, Ship):
        tower = f"prompts, by the text tower of {kept.card.model}"
        say(f"made of {tower if generator.decoder == 'tower' else 'class texts, by no text tower'}")
    say(f"{'kept' if kept.new else 'kept before, nothing was trained'}: {kept.path}")
    say(f"read by: {kept.card.reader()}")

"""`search`: find the widths of a composition under a budget, for `train --composition`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cache.errors import UserError, count
from fewshot.commands.options import (
    DEFAULT_MODEL,
    FEW_SHOT,
    MAX_PIXELS,
    OUTPUT,
    SEED,
    DataRootOption,
    DatasetOption,
    DeviceOption,
    FlipOption,
    ImageCropScaleOption,
    ManifestOption,
    MaxPixelsOption,
    ModelOption,
    PrecisionOption,
    SettingsOption,
    ShotsOption,
    WorkersOption,
)
from fewshot.commands.parsing import parse_ints, parse_pairs
from fewshot.commands.terminal import print_table, say

if TYPE_CHECKING:
    from fewshot.endtoend.search.searching import Searched

UNITS = {"k": 1_000, "m": 1_000_000}
SEARCH = "Search"


def search(
    dataset: DatasetOption = None,
    manifest: ManifestOption = None,
    data_root: DataRootOption = None,
    model: ModelOption = DEFAULT_MODEL,
    budget: Annotated[
        str,
        typer.Option(
            metavar="N", help="Maximum of trained parameters, such as 300k.", rich_help_panel=SEARCH
        ),
    ] = "300k",
    strategy: Annotated[
        Literal["evolution", "random"],
        typer.Option(
            help="NOAH's evolution, beside which random search of as many compositions is shown; "
            "or random search alone.",
            rich_help_panel=SEARCH,
        ),
    ] = "evolution",
    candidates: Annotated[
        int, typer.Option(min=1, help="Compositions to judge.", rich_help_panel=SEARCH)
    ] = 500,
    widths: Annotated[
        str,
        typer.Option(
            metavar="W,W,…",
            help="Widths to choose from: hidden units, rank, tokens; 0 is always one.",
            rich_help_panel=SEARCH,
        ),
    ] = "2,4,8,16",
    towers: Annotated[
        Literal["image", "text", "both"],
        typer.Option(help="Towers to change.", rich_help_panel=SEARCH),
    ] = "image",
    tune: Annotated[
        Literal["cv", "val", "full-val"],
        typer.Option(
            help="Judge by folds of the few shots (cv), by min(K, 4) validation images per class "
            "(val), or by all of them (full-val).",
            rich_help_panel=FEW_SHOT,
        ),
    ] = "cv",
    shots: ShotsOption = 16,
    seed: Annotated[
        int,
        typer.Option(
            *SEED,
            help="Random seed for drawing the few shots, for training and for the search.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = 1,
    settings: SettingsOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    crop_scale: ImageCropScaleOption = None,
    flip: FlipOption = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.toml",
            help="The composition. What the search needs to continue is beside it, in FILE.search.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("composition.toml"),
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
) -> None:
    """Search for the best mix of adapters, LoRA and prompts."""
    from cache.datasets.resolving import find
    from cache.extract import default_workers
    from cache.location import require_writable
    from cache.models.loading import load
    from fewshot.endtoend.search.composition_file import write_composition
    from fewshot.endtoend.search.searching import STRATEGIES
    from fewshot.endtoend.search.searching import search as searched

    if out.suffix != ".toml":
        raise UserError(f"--out must end in .toml; got {out}")
    require_writable({"--out": out})
    limit, choices = parse_count("--budget", budget), parse_ints("--widths", widths)
    if min(choices) < 0 or max(choices) < 1:
        raise UserError(f"--widths must be 0 or more, one of them above 0; got {widths!r}")
    fixed = parse_pairs("--set", settings)
    source = find(dataset, manifest, root=data_root, max_pixels=max_pixels)
    outcome = searched(
        load(model, device=device, precision=precision),
        source,
        shots=shots,
        seed=seed,
        budget=limit,
        folder=out.with_suffix(".search"),
        settings=fixed,
        towers=towers,
        choices=choices,
        tune=tune,
        strategies=tuple(STRATEGIES) if strategy == "evolution" else ("random",),
        candidates=candidates,
        crop_scale=crop_scale,
        flip=flip,
        workers=workers or default_workers(),
    )
    _print(outcome)
    best = outcome.found[strategy]
    about = (
        f"The best of {count(candidates, 'composition')} by {strategy} search on {source.dataset}, "
        f"{count(shots, 'shot')}, seed {seed}: {best.trained:,} trained parameters."
    )
    write_composition(out, best.composition, about)
    words = ["fewshot", "train", "--composition", str(out)]
    words += ["--dataset", dataset or ""] if manifest is None else ["--manifest", str(manifest)]
    words += ["--model", model, "--shots", str(shots), "--seed", str(seed)]
    words += ["--crop-scale", *map(str, crop_scale)] if crop_scale else []
    words += [] if flip is None else ["--flip" if flip else "--no-flip"]
    say(f"{out}; train and test it: {shlex.join(words)}")


def parse_count(option: str, text: str) -> int:
    """A count such as 300000, 300k or 1.5M.

    Raises:
        UserError: It is none.
    """
    unit = UNITS.get(text[-1:].lower())
    try:
        number = float(text[:-1]) * unit if unit else float(text)
        if number >= 1 and number == int(number):
            return int(number)
    except (OverflowError, ValueError):
        pass
    raise UserError(f"{option} must be a count such as 300000, 300k or 1.5M; got {text!r}")


def _print(outcome: "Searched") -> None:
    """One line for the model as it is and one for the best of each strategy."""
    rows = [("none", outcome.without, 0)]
    rows += [(name, best.fitness, best.trained) for name, best in outcome.found.items()]
    print_table(
        ("search", f"accuracy on {count(outcome.n_judged, 'image')}", "loss", "trained parameters"),
        [(name, f"{100 * right:.1f}", f"{-x:.3f}", f"{n:,}") for name, (right, x), n in rows],
    )

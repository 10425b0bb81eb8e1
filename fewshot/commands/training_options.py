"""Options of the commands that train through the model: `train`, `search` and `bench`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fewshot.commands.options import COMPUTING, DATA, FEW_SHOT, OUTPUT, SEED

SEARCH = "Search"  # title of the options of `search` in its --help

TrainedMethodArgument = Annotated[
    str | None,
    typer.Argument(metavar="METHOD", help="Name of the method; `fewshot methods` lists them."),
]
CompositionOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        help="Train the composition of this file, as `fewshot search` writes it, in place of "
        "METHOD.",
        rich_help_panel=FEW_SHOT,
    ),
]
ShotsOrAllOption = Annotated[
    str,
    typer.Option(
        metavar="INTEGER|all",
        help="Training images per class; or all, of which a class may have none.",
        rich_help_panel=FEW_SHOT,
    ),
]
TrainingSeedOption = Annotated[
    int,
    typer.Option(
        *SEED,
        help="Random seed for drawing the few shots and for training.",
        rich_help_panel=FEW_SHOT,
    ),
]
ImageCropScaleOption = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--crop-scale",
        help="Minimum and maximum share of the image's area in a training crop. "
        "[default: the paper's]",
        rich_help_panel=FEW_SHOT,
    ),
]
FlipOption = Annotated[
    bool | None,
    typer.Option(
        "--flip/--no-flip",
        help="Mirror half of the training crops. [default: the paper's]",
        rich_help_panel=FEW_SHOT,
    ),
]
OfficialOption = Annotated[
    bool,
    typer.Option(
        "--official",
        help="Train with the published recipe exactly, its few shots included.",
        rich_help_panel=FEW_SHOT,
    ),
]
SaveMemoryOption = Annotated[
    bool,
    typer.Option(
        "--save-memory",
        help="Compute activations twice instead of keeping them.",
        rich_help_panel=COMPUTING,
    ),
]
LiveOption = Annotated[
    bool,
    typer.Option(
        "--live",
        help="Encode images even if a store has their features.",
        rich_help_panel=DATA,
    ),
]
RunsOption = Annotated[
    Path, typer.Option(help="Folder of checkpoints and results.", rich_help_panel=OUTPUT)
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue from the last checkpoint of the same run.",
        rich_help_panel=COMPUTING,
    ),
]

BudgetOption = Annotated[
    str,
    typer.Option(
        metavar="N", help="Maximum of trained parameters, such as 300k.", rich_help_panel=SEARCH
    ),
]
StrategyOption = Annotated[
    Literal["evolution", "random"],
    typer.Option(
        help="NOAH's evolution, beside which random search of as many compositions is shown; "
        "or random search alone.",
        rich_help_panel=SEARCH,
    ),
]
CandidatesOption = Annotated[
    int, typer.Option(min=1, help="Compositions to judge.", rich_help_panel=SEARCH)
]
WidthsOption = Annotated[
    str,
    typer.Option(
        metavar="W,W,…",
        help="Widths to choose from: hidden units, rank, tokens; 0 is always one.",
        rich_help_panel=SEARCH,
    ),
]
TowersOption = Annotated[
    Literal["image", "text", "both"],
    typer.Option(help="Towers to change.", rich_help_panel=SEARCH),
]
JudgesOption = Annotated[
    Literal["cv", "val", "full-val"],
    typer.Option(
        help="Judge by folds of the few shots (cv), by min(K, 4) validation images per class "
        "(val), or by all of them (full-val).",
        rich_help_panel=FEW_SHOT,
    ),
]
SearchSeedOption = Annotated[
    int,
    typer.Option(
        *SEED,
        help="Random seed for drawing the few shots, for training and for the search.",
        rich_help_panel=FEW_SHOT,
    ),
]
FoundOption = Annotated[
    Path,
    typer.Option(
        metavar="FILE.toml",
        help="The composition. What the search needs to continue is beside it, in FILE.search.",
        rich_help_panel=OUTPUT,
    ),
]

"""Options of `extract` alone."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fewshot.commands.options import COMPUTING, DATA, SEED

PROMPTS = "Prompts"
VIEWS = "Augmented views"
IMAGES = "Which images"

ResizeOption = Annotated[
    Literal["shorter", "squash"] | None,
    typer.Option(
        help="Scale the shorter side and crop the center, or squash to a square. "
        "[default: as the model was trained]",
        rich_help_panel=COMPUTING,
    ),
]

FastImagesOption = Annotated[
    bool,
    typer.Option(
        "--fast-images",
        help="Decode and scale photos 2 to 3 times faster; pixels may differ by 1 of 255.",
        rich_help_panel=COMPUTING,
    ),
]

TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Prompt with {} for the class name, instead of the dataset's own; repeatable.",
        rich_help_panel=PROMPTS,
    ),
]

TemplateSetOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Encode another set of the dataset's templates as well; repeatable.",
        rich_help_panel=PROMPTS,
    ),
]

PromptFilesOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Encode a JSON file of class -> sentences (as CuPL's) as well; repeatable.",
        rich_help_panel=PROMPTS,
    ),
]

ViewsOption = Annotated[
    int,
    typer.Option(min=0, help="Augmented views per training image.", rich_help_panel=VIEWS),
]

CropScaleOption = Annotated[
    tuple[float, float],
    typer.Option(
        help="Minimum and maximum share of the image's area in a view.", rich_help_panel=VIEWS
    ),
]

ViewSeedOption = Annotated[
    int, typer.Option(min=0, help="Random seed for the views.", rich_help_panel=VIEWS)
]

PreProjectionOption = Annotated[
    bool,
    typer.Option(
        "--pre-projection",
        help="Store what the image tower's last layer norm and projection make features of, too.",
        rich_help_panel=IMAGES,
    ),
]

SupportOnlyOption = Annotated[
    str | None,
    typer.Option(
        metavar="K[,K…]",
        help="Encode only the training images that few-shot sets of K shots contain.",
        rich_help_panel=IMAGES,
    ),
]

SeedsOption = Annotated[
    str,
    typer.Option(
        *SEED,
        metavar="S[,S…]",
        help="Random seeds of the few-shot sets of --support-only.",
        rich_help_panel=IMAGES,
    ),
]

MultiLabelOption = Annotated[
    bool,
    typer.Option(
        "--multi-label",
        help="Take several rows of one image in a table for several labels. [default: only "
        "where cells have semicolons between labels]",
        rich_help_panel=IMAGES,
    ),
]

AllTrainOption = Annotated[
    bool,
    typer.Option(
        "--all-train",
        help="Use all images for training, but those in a test folder of their own.",
        rich_help_panel=IMAGES,
    ),
]

UnlabeledOption = Annotated[
    Path | None,
    typer.Option(
        metavar="NAMES",
        help="Images have no labels: encode all in the folder or shards as a train split, and "
        "prompts of the class names in this file, one per line.",
        rich_help_panel=IMAGES,
    ),
]

SkipUnreadableOption = Annotated[
    bool,
    typer.Option("--skip-unreadable", help="Leave out unreadable images.", rich_help_panel=IMAGES),
]

DownloadOption = Annotated[
    bool,
    typer.Option(
        "--download",
        help="Download the dataset through torchvision, where it offers that.",
        rich_help_panel=DATA,
    ),
]

BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Crops per forward pass. [default: 8 on a CPU, else 64]",
        rich_help_panel=COMPUTING,
    ),
]

ShardOption = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Encode only part I of N; the command without --shard assembles the store.",
        rich_help_panel=COMPUTING,
    ),
]

EngineOption = Annotated[
    Literal["serial", "process", "ray"],
    typer.Option(
        help="Encode in this process, in worker processes, or on a Ray cluster.",
        rich_help_panel=COMPUTING,
    ),
]

ProcessesOption = Annotated[
    int,
    typer.Option(min=1, help="Workers of the engines process and ray.", rich_help_panel=COMPUTING),
]

ShareOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|URL",
        help="Put the features of each 512 images there as well, and take what other machines "
        "have put there: for machines without a common disk.",
        rich_help_panel=COMPUTING,
    ),
]

InPartsOption = Annotated[
    bool | None,
    typer.Option(
        "--parts/--one-file",
        help="Write the features into files of 64 MiB beside the store, or all into one file. "
        "[default: parts above 1 GiB]",
        rich_help_panel=COMPUTING,
    ),
]

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only check and report.")]

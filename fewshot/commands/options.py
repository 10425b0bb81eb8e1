"""Options that several commands share, and the lists that options hold."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cache.images.decoding_memory import MAX_PIXELS as MAX_PIXELS

DEFAULT_MODEL = "ViT-B-16/openai"
SEED = ("--seed", "--seeds")  # one option in every command, whether it takes one or a list

# Titles under which a long --help groups its options.
DATA = "Data and model"
FEW_SHOT = "Few-shot protocol"
COMPUTING = "Computing"
OUTPUT = "Output"

DatasetOption = Annotated[
    str | None,
    typer.Option(
        help="A name from `fewshot datasets`, a folder of images, a CSV or JSONL file, or "
        "shards (tar, parquet) such as 's3://bucket/train-{000..012}.tar'.",
        rich_help_panel=DATA,
    ),
]
StoredDatasetOption = Annotated[
    str | None,
    typer.Option(
        help="Dataset whose store to use. [default: the one extracted last]",
        rich_help_panel=DATA,
    ),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(help="Prompt set of the store. [default: templates]", rich_help_panel=FEW_SHOT),
]
ManifestOption = Annotated[
    Path | None,
    typer.Option(
        "--manifest", help="Your own manifest (TOML) instead of a name.", rich_help_panel=DATA
    ),
]
DataRootOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the datasets. [default: $FEWSHOT_DATA or ./data]", rich_help_panel=DATA
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        envvar="FEWSHOT_MODEL",
        help="ViT-B-16/openai, hf-hub:…, local-dir:…, ARCH@FILE, timm:…, or tiny.",
        rich_help_panel=DATA,
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="Folder of the stores. [default: $FEWSHOT_STORE or ./features]",
        rich_help_panel=DATA,
    ),
]

MethodArgument = Annotated[
    str, typer.Argument(metavar="METHOD", help="Name of the method; `fewshot methods` lists them.")
]
ShotsOption = Annotated[
    int, typer.Option(min=1, help="Training images per class.", rich_help_panel=FEW_SHOT)
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Fix a hyper-parameter; repeatable.",
        rich_help_panel=FEW_SHOT,
    ),
]
TuneOption = Annotated[
    Literal["none", "cv", "val", "full-val"] | None,
    typer.Option(
        help="Choose hyper-parameters by cross-validation on the few shots (cv), on min(K, 4) "
        "validation images per class (val), on all of them (full-val), or not at all. "
        "[default: cv; none at one shot]",
        rich_help_panel=FEW_SHOT,
    ),
]
BlendOption = Annotated[
    str | None,
    typer.Option(
        metavar="auto|0..1",
        help="Share of the method in the logits; zero-shot has the rest. With 1 the method stands "
        "alone. [default: auto]",
        rich_help_panel=FEW_SHOT,
    ),
]
BaseToNewOption = Annotated[
    bool,
    typer.Option(
        "--base-to-new",
        help="Learn the first half of the classes, and test on both halves.",
        rich_help_panel=FEW_SHOT,
    ),
]
SynthesizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="GENERATOR",
        help="Learn the new classes from features made of their names: ship, 'ship beta=0.1', or "
        "tf-vaegan, which learns from their unlabeled train images as well.",
        rich_help_panel=FEW_SHOT,
    ),
]
ImbalanceOption = Annotated[
    str | None,
    typer.Option(
        metavar="PROFILE",
        help="Classes of unequal size: long-tail:100, step:10, or natural (all images).",
        rich_help_panel=FEW_SHOT,
    ),
]
KnownOption = Annotated[
    str | None,
    typer.Option(
        metavar="K|NAMES|published",
        help="Open set: learn the first K classes, those named with commas between, or as many as "
        "are known in published open sets; the others' test images are unknown.",
        rich_help_panel=FEW_SHOT,
    ),
]
AdaptFromOption = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="NAME",
        help="Domain adaptation: learn from the labels of this dataset and from the train "
        "images of --dataset, without their labels, and test on --dataset.",
        rich_help_panel=FEW_SHOT,
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Certainty below which an image of --dataset is of no class of --source. "
        "[default: 0.5]",
        rich_help_panel=FEW_SHOT,
    ),
]
ScoreOption = Annotated[
    Literal["mcm", "max-softmax", "max-logit", "energy"] | None,
    typer.Option(
        help="Score that separates known images from unknown ones. [default: mcm]",
        rich_help_panel=FEW_SHOT,
    ),
]

DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps", "xpu"],
    typer.Option(
        help="Where to run the model; auto is CUDA where there is one.", rich_help_panel=COMPUTING
    ),
]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option(
        help="Floating-point format of the model; auto is fp16 on CUDA, else fp32.",
        rich_help_panel=COMPUTING,
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Threads that decode images. [default: one per core]", rich_help_panel=COMPUTING
    ),
]
RehashOption = Annotated[
    bool,
    typer.Option(
        "--rehash",
        help="Read images again whose size and time of modification are as before.",
        rich_help_panel=COMPUTING,
    ),
]
MaxPixelsOption = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Maximum size of an image to decode, width x height in pixels.",
        rich_help_panel=COMPUTING,
    ),
]

IfExistsOption = Annotated[
    Literal["resume", "skip", "overwrite", "error"],
    typer.Option(help="What to do if the store exists.", rich_help_panel=COMPUTING),
]
PerClassOption = Annotated[
    bool,
    typer.Option(
        "--per-class",
        help="Show mean per-class accuracy too, as for datasets of which it is what is published.",
    ),
]
LogToOption = Annotated[
    Literal["mlflow", "tensorboard", "wandb", "none"],
    typer.Option("--log-to", help="Write runs to this logger as well.", rich_help_panel=OUTPUT),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print JSON, one object per line.", rich_help_panel=OUTPUT),
]
SaveAdapterOption = Annotated[
    Path | None,
    typer.Option(
        "--save",
        metavar="FILE.safetensors",
        help="Save the classifier as an adapter, for `fewshot predict`.",
        rich_help_panel=OUTPUT,
    ),
]

AdapterArgument = Annotated[
    Path,
    typer.Argument(
        metavar="ADAPTER",
        help="Adapter file, as `fewshot fit --save` writes it, or hf-hub:USER/NAME.",
    ),
]
AdapterModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Name or folder of the adapter's model. [default: the name in the adapter]",
        rich_help_panel=DATA,
    ),
]
NameArgument = Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one in full.")]
StoreOrAdapterArgument = Annotated[
    Path, typer.Argument(metavar="PATH", help="A store, an adapter, or synthesized features.")
]

"""Encode the images and prompts of a dataset into a store."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fewshot.commands.options import (
    COMPUTING,
    DATA,
    DEFAULT_MODEL,
    MAX_PIXELS,
    SEED,
    DataRootOption,
    DatasetOption,
    DeviceOption,
    IfExistsOption,
    ManifestOption,
    MaxPixelsOption,
    ModelOption,
    PrecisionOption,
    RehashOption,
    StoreOption,
    WorkersOption,
)
from fewshot.commands.parsing import parse_shard
from fewshot.commands.terminal import say, show
from fewshot.commands.typed_recipe import (
    checked,
    contents,
    recipe_for,
    require_alone,
    require_text_tower,
    train_rows,
    typed_few_shots,
    typed_prompts,
)

PROMPTS = "Prompts"
VIEWS = "Augmented views"
IMAGES = "Which images"


def extract(
    dataset: DatasetOption = None,
    manifest: ManifestOption = None,
    data_root: DataRootOption = None,
    model: ModelOption = DEFAULT_MODEL,
    store: StoreOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    resize: Annotated[
        Literal["shorter", "squash"] | None,
        typer.Option(
            help="Scale the shorter side and crop the center, or squash to a square. "
            "[default: as the model was trained]",
            rich_help_panel=COMPUTING,
        ),
    ] = None,
    fast_images: Annotated[
        bool,
        typer.Option(
            "--fast-images",
            help="Decode and scale photos 2 to 3 times faster; pixels may differ by 1 of 255.",
            rich_help_panel=COMPUTING,
        ),
    ] = False,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt with {} for the class name, instead of the dataset's own; repeatable.",
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    template_set: Annotated[
        list[str] | None,
        typer.Option(
            help="Encode another set of the dataset's templates as well; repeatable.",
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            help="Encode a JSON file of class -> sentences (as CuPL's) as well; repeatable.",
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    views: Annotated[
        int,
        typer.Option(min=0, help="Augmented views per training image.", rich_help_panel=VIEWS),
    ] = 0,
    crop_scale: Annotated[
        tuple[float, float],
        typer.Option(
            help="Minimum and maximum share of the image's area in a view.", rich_help_panel=VIEWS
        ),
    ] = (0.5, 1.0),
    view_seed: Annotated[
        int, typer.Option(min=0, help="Random seed for the views.", rich_help_panel=VIEWS)
    ] = 0,
    pre_projection: Annotated[
        bool,
        typer.Option(
            "--pre-projection",
            help="Store what the image tower's last layer norm and projection make features of, "
            "too.",
            rich_help_panel=IMAGES,
        ),
    ] = False,
    support_only: Annotated[
        str | None,
        typer.Option(
            metavar="K[,K…]",
            help="Encode only the training images that few-shot sets of K shots contain.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            *SEED,
            metavar="S[,S…]",
            help="Random seeds of the few-shot sets of --support-only.",
            rich_help_panel=IMAGES,
        ),
    ] = "1,2,3",
    multi_label: Annotated[
        bool,
        typer.Option(
            "--multi-label",
            help="Take several rows of one image in a table for several labels. [default: only "
            "where cells have semicolons between labels]",
            rich_help_panel=IMAGES,
        ),
    ] = False,
    all_train: Annotated[
        bool,
        typer.Option(
            "--all-train",
            help="Use all images for training, but those in a test folder of their own.",
            rich_help_panel=IMAGES,
        ),
    ] = False,
    unlabeled: Annotated[
        Path | None,
        typer.Option(
            metavar="NAMES",
            help="Images have no labels: encode all in the folder or shards as a train split, and "
            "prompts of the class names in this file, one per line.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    if_exists: IfExistsOption = "resume",
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable", help="Leave out unreadable images.", rich_help_panel=IMAGES
        ),
    ] = False,
    download: Annotated[
        bool,
        typer.Option(
            "--download",
            help="Download the dataset through torchvision, where it offers that.",
            rich_help_panel=DATA,
        ),
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Crops per forward pass. [default: 8 on a CPU, else 64]",
            rich_help_panel=COMPUTING,
        ),
    ] = None,
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    rehash: RehashOption = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Encode only part I of N; the command without --shard assembles the store.",
            rich_help_panel=COMPUTING,
        ),
    ] = None,
    engine: Annotated[
        Literal["serial", "process", "ray"],
        typer.Option(
            help="Encode in this process, in worker processes, or on a Ray cluster.",
            rich_help_panel=COMPUTING,
        ),
    ] = "serial",
    processes: Annotated[
        int,
        typer.Option(
            min=1, help="Workers of the engines process and ray.", rich_help_panel=COMPUTING
        ),
    ] = 2,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|URL",
            help="Put the features of each 512 images there as well, and take what other machines "
            "have put there: for machines without a common disk.",
            rich_help_panel=COMPUTING,
        ),
    ] = None,
    in_parts: Annotated[
        bool | None,
        typer.Option(
            "--parts/--one-file",
            help="Write the features into files of 64 MiB beside the store, or all into one file. "
            "[default: parts above 1 GiB]",
            rich_help_panel=COMPUTING,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check and report.")] = False,
) -> None:
    """Encode the images and prompts of a dataset into a store."""
    from cache.datasets.resolving import find
    from cache.datasets.source import pooled
    from cache.datasets.unlabeled_source import find_unlabeled
    from cache.extract import default_workers
    from cache.extract import extract as extract_to
    from cache.identity import Recipe
    from cache.location import (
        bank_path,
        default_root,
        pair_names,
        require_outside,
        require_writable,
        store_path,
    )

    part = parse_shard(shard)
    root = store or default_root()
    if dataset is not None:
        require_outside(Path(dataset), {"--store": root})
    if unlabeled is None:
        source = find(
            dataset, manifest, root=data_root, download=download, max_pixels=max_pixels,
            multi_label=multi_label,
        )  # fmt: skip
    else:
        require_alone(manifest, support_only, all_train, download, multi_label)
        source = find_unlabeled(dataset, unlabeled, max_pixels=max_pixels)
    source = pooled(source) if all_train else source
    few = typed_few_shots(support_only, seeds)
    source, left_out = checked(source, few, skip_unreadable=skip_unreadable)
    models = pair_names(model) or (model,)
    require_text_tower(models, template, prompts, template_set)
    recipe = Recipe(
        prompts=typed_prompts(source, template, template_set, prompts),
        views=views,
        crop_scale=crop_scale,
        view_seed=view_seed,
        train_rows=train_rows(source, few),
        support_only=few,
        left_out=left_out,
        pre_projection=pre_projection,
    )
    recipes = {name: recipe_for(name, recipe) for name in models}
    paths = {name: store_path(root, source.dataset, name) for name in models}
    if dry_run:
        for name, wanted in recipes.items():
            say(f"would encode {contents(wanted, source)} with {name} into {paths[name]}")
        return
    from cache.models.loading import load

    require_writable(folders={"--store": paths[models[0]].parent})
    for name, wanted in recipes.items():
        path = paths[name]
        encoder = load(
            name, device=device, precision=precision, resize=resize, fast_images=fast_images
        )
        built = extract_to(
            source,
            encoder,
            wanted,
            path,
            bank=bank_path(root),
            rehash=rehash,
            batch_size=batch_size,
            workers=workers or default_workers(),
            if_exists=if_exists,
            skip_unreadable=skip_unreadable,
            part=part,
            engine=engine,
            processes=processes,
            share=share,
            in_parts=in_parts,
            say=say,
        )
        if shard and built:
            say(f"part {shard} of {path} is encoded; the command without --shard assembles all")
        else:
            show(str(path) if built else f"{path} (already there)")

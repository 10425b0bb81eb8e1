"""Make stores: `extract` encodes images and prompts, `import` takes features made elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import unknown
from fewshot.commands.options import (
    DEFAULT_MODEL,
    MAX_PIXELS,
    DataRoot,
    Dataset,
    ManifestFile,
    MaxPixels,
    Model,
    StoreRoot,
    parse_ints,
    parse_pairs,
    parse_shard,
)
from fewshot.commands.terminal import say, show

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cache.skipped import Skipped
    from cache.source import Source


def extract(
    dataset: Dataset = None,
    manifest: ManifestFile = None,
    data_root: DataRoot = None,
    model: Model = DEFAULT_MODEL,
    store: StoreRoot = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (fp32 on a CPU, fp16 on CUDA), fp32, bf16 or fp16.")
    ] = "auto",
    resize: Annotated[
        str | None,
        typer.Option(help="shorter or squash. [default: what the model was trained with]"),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A prompt with {} for the class name, instead of the dataset's own."),
    ] = None,
    template_set: Annotated[
        list[str] | None,
        typer.Option(help="Another set of the dataset's templates, encoded as well."),
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(help="JSON of class -> sentences (CuPL's form), encoded as well."),
    ] = None,
    views: Annotated[int, typer.Option(min=0, help="Augmented views per train image.")] = 0,
    crop_scale: Annotated[
        tuple[float, float], typer.Option(help="Least and greatest share of the area of a view.")
    ] = (0.5, 1.0),
    view_seed: Annotated[int, typer.Option(min=0, help="Seed of the views.")] = 0,
    support_only: Annotated[
        str | None,
        typer.Option(metavar="SHOTS", help="Encode only the train images of these few-shot sets."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of those few-shot sets.")] = "1,2,3",
    all_train: Annotated[
        bool,
        typer.Option(
            "--all-train", help="Keep no test images back, unless they have a folder of their own."
        ),
    ] = False,
    if_exists: Annotated[str, typer.Option(help="resume, skip, overwrite or error.")] = "resume",
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Let torchvision fetch the data, where it can.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Crops per forward pass.")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images. [default: per core]")
    ] = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Encode the I-th of N parts only; a plain run assembles."),
    ] = None,
    engine: Annotated[str, typer.Option(help="serial, process or ray.")] = "serial",
    processes: Annotated[int, typer.Option(min=1, help="Workers of process and ray.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and report only.")] = False,
) -> None:
    """Encode images and prompts once, into a feature store."""
    from cache.extract import default_workers
    from cache.extract import extract as extract_to
    from cache.identity import Recipe
    from cache.location import default_root, require_outside, store_path
    from cache.prompts import prompt_sets
    from cache.source import find, pooled

    part = parse_shard(shard)
    root = store or default_root()
    if dataset is not None:
        require_outside(Path(dataset), {"--store": root})
    source = find(dataset, manifest, root=data_root, download=download, max_pixels=max_pixels)
    source = pooled(source) if all_train else source
    rows, only = _support_rows(source, support_only, seeds)
    source, left_out = _checked(source, rows, skip_unreadable)
    rows, only = _support_rows(source, support_only, seeds)
    further = {name: _template_set(source, name) for name in template_set or ()}
    templates = template or source.templates
    recipe = Recipe(
        prompts=prompt_sets(source.classnames, templates, prompts or (), further),
        views=views,
        crop_scale=crop_scale,
        view_seed=view_seed,
        train_rows=rows,
        support_only=only,
        left_out=left_out,
    )
    path = store_path(root, source.dataset, model)
    images = sum(len(chosen) for chosen in recipe.rows(source).values())
    if dry_run:
        sentences = sum(len(p.prompts) for p in recipe.prompts.values())
        say(f"would encode {images} images and {sentences} prompts with {model} into {path}")
        return
    from cache.loading import load

    encoder = load(model, device=device, precision=precision, resize=resize)
    built = extract_to(
        source,
        encoder,
        recipe,
        path,
        batch_size=batch_size,
        workers=workers or default_workers(),
        if_exists=if_exists,
        skip_unreadable=skip_unreadable,
        part=part,
        engine=engine,
        processes=processes,
    )
    if shard and built:
        say(f"part {shard} of {path} is encoded; the command without --shard assembles all")
    else:
        show(str(path) if built else f"{path} (already there)")


def _support_rows(
    source: "Source", shots: str | None, seeds: str
) -> tuple["NDArray[np.int64] | None", dict[str, list[int]] | None]:
    """The train rows of the few-shot sets asked for, and which those sets are."""
    if shots is None:
        return None, None
    import numpy as np

    from fewshot.sampling import draw

    labels = [item.label for item in source.splits.get("train", ())]
    only = {"shots": parse_ints("--support-only", shots), "seeds": parse_ints("--seeds", seeds)}
    rows = [
        draw(labels, source.classnames, shots=k, seed=seed).train
        for k in only["shots"]
        for seed in only["seeds"]
    ]
    return np.unique(np.concatenate(rows)), only


def _checked(
    source: "Source", train_rows: "NDArray[np.int64] | None", skip: bool
) -> tuple["Source", tuple["Skipped", ...]]:
    """The source after its pre-flight report, and the images left out of it."""
    from cache.preflight import check
    from cache.progress import progress

    rows = {split: range(len(items)) for split, items in source.splits.items()}
    if train_rows is not None:
        rows |= {"train": train_rows.tolist()}
    with progress(f"{source.dataset}: files", sum(map(len, rows.values()))) as advance:
        report = check(source, rows=rows, advance=advance)
    say(report.report())
    return report.passed(skip_unreadable=skip)


def _template_set(source: "Source", name: str) -> tuple[str, ...]:
    if name not in source.template_sets:
        raise unknown(f"template set of {source.dataset}", name, source.template_sets)
    return source.template_sets[name]


def import_(
    file: Annotated[Path, typer.Argument(help="An .npz, or a folder of .pt feature files.")],
    dataset: Annotated[str, typer.Option(help="What to call the dataset.")],
    model: Annotated[str, typer.Option(help="Which model made the features.")],
    array: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KEY", help="Which array is which: train_features=train16_x."),
    ] = None,
    logit_scale: Annotated[
        float, typer.Option(min=0, help="The model's inverse temperature.")
    ] = 100.0,
    store: StoreRoot = None,
    if_exists: Annotated[str, typer.Option(help="error, skip, resume or overwrite.")] = "error",
) -> None:
    """Make a store of features that were computed elsewhere."""
    from cache.import_store import import_file
    from cache.location import default_root

    arrays = parse_pairs("--array", array)
    root = store or default_root()
    path = import_file(
        file,
        dataset,
        model,
        root,
        arrays=arrays,
        if_exists=if_exists,
        logit_scale=logit_scale,
        say=say,
    )
    show(str(path))

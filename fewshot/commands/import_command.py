"""Make stores from features computed elsewhere, and adapters from CLIP-LoRA's own files."""

from pathlib import Path
from typing import Annotated

import typer

from cache.errors import UserError
from fewshot.commands.options import DataRootOption, IfExistsOption, StoreOption
from fewshot.commands.parsing import parse_pairs
from fewshot.commands.terminal import say, show


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="An .npz file, a folder of .pt files or of res101.mat and att_splits.mat, or "
            "CLIP-LoRA's own file (with --save).",
        ),
    ],
    dataset: Annotated[str, typer.Option(help="Name for the dataset.")],
    model: Annotated[str, typer.Option(help="Model that made the features.")],
    array: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KEY",
            help="Name of an array in the file, such as train_features=train16_x; repeatable.",
        ),
    ] = None,
    logit_scale: Annotated[
        float, typer.Option(min=0, help="The model's inverse temperature.")
    ] = 100.0,
    store: StoreOption = None,
    if_exists: IfExistsOption = "error",
    data_root: DataRootOption = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Read a file of CLIP-LoRA's own code, and write this adapter.",
        ),
    ] = None,
) -> None:
    """Make a store from features computed elsewhere."""
    if save is not None:
        _import_adapter(file, dataset, model, data_root, save)
        return
    from cache.importing.import_store import import_file
    from cache.location import default_root

    arrays = parse_pairs("--array", array)
    root = store or default_root()
    try:
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
    except UserError as error:
        if file.suffix != ".pt":
            raise
        raise UserError(f"{error}; CLIP-LoRA's own file needs --save") from error
    show(str(path))


def _import_adapter(
    file: Path, dataset: str, model: str, data_root: Path | None, save: Path
) -> None:
    from cache.datasets.resolving import find
    from cache.models.loading import load
    from fewshot.adapters.adapter import require_suffix
    from fewshot.adapters.import_clip_lora import import_clip_lora

    require_suffix(save)
    adapter = import_clip_lora(file, load(model, device="cpu"), find(dataset, root=data_root))
    adapter.save(save)
    say(f"{save}: {adapter.summary()}")

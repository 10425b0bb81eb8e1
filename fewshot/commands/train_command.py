"""`train`: adapt with gradients through the model, and test."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cache.errors import UserError, count, some
from fewshot.commands.method_names import require_method
from fewshot.commands.options import (
    COMPUTING,
    DATA,
    DEFAULT_MODEL,
    FEW_SHOT,
    MAX_PIXELS,
    OUTPUT,
    SEED,
    AdaptFromOption,
    BaseToNewOption,
    DataRootOption,
    DatasetOption,
    DeviceOption,
    FlipOption,
    ImageCropScaleOption,
    JsonOption,
    KnownOption,
    LogToOption,
    ManifestOption,
    MaxPixelsOption,
    ModelOption,
    OfficialOption,
    PrecisionOption,
    SaveAdapterOption,
    SaveMemoryOption,
    ScoreOption,
    SettingsOption,
    StoreOption,
    SynthesizeOption,
    ThresholdOption,
    WorkersOption,
)
from fewshot.commands.parsing import parse_pairs
from fewshot.commands.terminal import say
from fewshot.commands.train_across import train_across

if TYPE_CHECKING:
    from fewshot.endtoend.experiment import Trained

COMPOSITION = "composition"


def train(
    method: Annotated[
        str | None,
        typer.Argument(metavar="METHOD", help="Name of the method; `fewshot methods` lists them."),
    ] = None,
    dataset: DatasetOption = None,
    manifest: ManifestOption = None,
    data_root: DataRootOption = None,
    model: ModelOption = DEFAULT_MODEL,
    shots: Annotated[
        str,
        typer.Option(
            metavar="INTEGER|all",
            help="Training images per class; or all, of which a class may have none.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = "16",
    seed: Annotated[
        int,
        typer.Option(
            *SEED,
            help="Random seed for drawing the few shots and for training.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = 1,
    settings: SettingsOption = None,
    composition: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Train the composition of this file, as `fewshot search` writes it, in place of "
            "METHOD.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = None,
    official: OfficialOption = False,
    base_to_new: BaseToNewOption = False,
    synthesize: SynthesizeOption = None,
    labeled: AdaptFromOption = None,
    threshold: ThresholdOption = None,
    known: KnownOption = None,
    score: ScoreOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    store: StoreOption = None,
    crop_scale: ImageCropScaleOption = None,
    flip: FlipOption = None,
    save_memory: SaveMemoryOption = False,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Encode images even if a store has their features.",
            rich_help_panel=DATA,
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder of checkpoints and results.", rich_help_panel=OUTPUT)
    ] = Path("runs"),
    save: SaveAdapterOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from the last checkpoint of the same run.",
            rich_help_panel=COMPUTING,
        ),
    ] = False,
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    log_to: LogToOption = "none",
    as_json: JsonOption = False,
) -> None:
    """Train through the model (CoOp, CLIP-LoRA, …), and test."""
    from cache.datasets.resolving import find
    from cache.extract import default_workers
    from cache.location import require_writable
    from cache.models.loading import load
    from fewshot.endtoend.checkpoint import steps_done
    from fewshot.endtoend.crops import crops_asked
    from fewshot.endtoend.display import shown
    from fewshot.endtoend.experiment import run, store_of
    from fewshot.endtoend.finished import checkpoint_path, require_new
    from fewshot.endtoend.methods import configure
    from fewshot.endtoend.privacy import spent
    from fewshot.endtoend.processor import lacks_bf16
    from fewshot.endtoend.requirements import require_published, require_splits
    from fewshot.endtoend.training_set import TrainingSet
    from fewshot.few_shots import base_and_new
    from fewshot.open_set import checked_known, known_classes, parse_known
    from fewshot.protocol import Protocol
    from fewshot.results.loggers import RunLogger

    if save is not None:
        from fewshot.adapters.adapter import require_suffix

        require_suffix(save)
    require_writable({"--out": out, "--save": save})
    fixed = parse_pairs("--set", settings)
    if composition is not None:
        from fewshot.endtoend.search.composition_file import read_composition

        if method not in (None, COMPOSITION):
            raise UserError(f"--composition takes the place of a method; got {method} as well")
        method, fixed = COMPOSITION, read_composition(composition) | fixed
    elif method is None:
        raise UserError(
            "missing argument METHOD; `fewshot methods` lists them; or give --composition"
        )
    chosen = configure(require_method(method, "train"), fixed, seed=seed)
    if score is not None and known is None:
        raise UserError("--score separates known images from unknown ones; give --known as well")
    if known is not None and save is not None:
        raise UserError("--save keeps one adapter of all classes; leave --known out")
    if base_to_new and known is not None:
        raise UserError("--known and --base-to-new are two settings; give one")
    if base_to_new and save is not None:
        raise UserError("--save keeps one adapter of all classes; leave --base-to-new out")
    if synthesize is not None and not base_to_new:
        raise UserError("--synthesize makes features of new classes; give --base-to-new as well")
    if threshold is not None and labeled is None:
        raise UserError("--threshold is for domain adaptation; give --source as well")
    if labeled is not None and (known is not None or base_to_new or official or save is not None):
        raise UserError("--source excludes --known, --base-to-new, --official and --save; give one")
    k = parse_shots(shots)
    if official:
        require_published(chosen, changed=[*fixed, *crops_asked(crop_scale, flip)])
    logger = RunLogger(log_to, out, say)
    source = find(dataset, manifest, root=data_root, max_pixels=max_pixels)
    if labeled is not None:
        if k == "all":
            raise UserError("--source learns from as many images of each class; give --shots K")
        first = find(labeled, root=data_root, max_pixels=max_pixels)
        trained, checkpoint = train_across(
            chosen,
            first,
            source,
            model=model,
            shots=k,
            seed=seed,
            fixed=list(fixed),
            threshold=0.5 if threshold is None else threshold,
            device=device,
            precision=precision,
            crop_scale=crop_scale,
            flip=flip,
            save_memory=save_memory,
            out=out,
            resume=resume,
            workers=workers or default_workers(),
            logger=logger,
        )
        _print(trained, out, checkpoint, as_json)
        return
    features = None if live else store_of(source, model, store)
    if features is not None:
        say(f"using {features.path}")
    n_classes = len(source.classnames)
    n_train = len(source.splits.get("train", ()))
    if k == "all" and not chosen.unsupervised():
        require_splits(source)
        drawn = TrainingSet.of(chosen, source, Protocol(shots="all"), val_first=False)
        if empty := [source.classnames[i] for i in drawn.without_images]:
            say(f"{some(empty)}: no train image; such a class is known by its text alone")
        steps = chosen.plan(drawn.mean_shots, n_train).iterations
    else:
        steps = chosen.steps(0 if k == "all" else k, n_classes, n_train)
    open_set = None if known is None else parse_known(known, source.dataset)
    if open_set is not None:
        n_classes = len(known_classes(source.classnames, checked_known(open_set)))
    if base_to_new:
        base, _ = base_and_new(source, "base-to-new")
        if k == "all":
            raise UserError("--base-to-new draws as many images of each class; give --shots K")
        steps = chosen.steps(k, len(base), 0)  # images of new classes are not trained on
        n_classes = n_classes if synthesize else len(base)
    asked: list[object] = [crop_scale, flip, official] + ([] if known is None else [known])
    asked += [["base-to-new", synthesize]] if base_to_new else []
    few = 0 if chosen.unsupervised() else k
    checkpoint = checkpoint_path(out, chosen, source, model, few, seed, *asked)
    if not resume:
        require_new(checkpoint)
    elif done := steps_done(checkpoint):
        say(f"continuing after {chosen.step_name} {done} of {checkpoint}")
    else:
        say(f"no checkpoint {checkpoint} to continue from; starting over")
    encoder = load(model, device=device, precision=precision)
    if precision == "bf16" and encoder.device.type == "cpu" and lacks_bf16():
        say("this processor has no instructions for bf16; --precision fp32 is faster")
    bars = shown(
        chosen.name,
        steps,
        len(source.splits.get("test", ())),
        chosen.step_name,
        n_classes if chosen.reads_prompts else 0,
    )
    amount = "all shots" if few == "all" else count(few, "shot")
    name = f"{chosen.name} {source.dataset} {model} {amount}, seed {seed}"
    with logger.run(name), bars as (watch, advance):
        trained = run(
            chosen,
            encoder,
            source,
            shots=k,
            seed=seed,
            fixed=list(fixed),
            known=open_set,
            setting="base-to-new" if base_to_new else "few-shot",
            synthesize=synthesize,
            score=score or "mcm",
            store=features,
            crop_scale=crop_scale,
            flip=flip,
            official=official,
            save_memory=save_memory,
            checkpoint=checkpoint,
            workers=workers or default_workers(),
            watch=logger.watching(watch),
            advance=advance,
        )
        logger.result(trained.result)
    if skipped := int(trained.result.measures.get("skipped_steps", 0)):
        say(
            f"{skipped} of {steps} steps were skipped, since gradients overflowed float16 (the "
            "first of a run often do)"
        )
    if "private_steps" in trained.result.measures:
        say(spent(trained.result.measures))
    _print(trained, out, checkpoint, as_json)
    if save is not None:
        from fewshot.adapters.trained_adapter import of_trained

        adapter = of_trained(trained, chosen, encoder, source, workers=workers or default_workers())
        adapter.save(save)
        say(f"{save}: {adapter.summary()}")


def parse_shots(text: str) -> int | Literal["all"]:
    """The number of images per class; or all.

    Raises:
        UserError: It is neither.
    """
    if text == "all":
        return "all"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--shots must be a whole number, 1 or more, or all; got {text!r:.60}")
    return int(text)


def _print(trained: "Trained", out: Path, checkpoint: Path, as_json: bool) -> None:
    """The result on stdout and in the folder's file, and on stderr whether it was there before."""
    from fewshot.results.log import append_new
    from fewshot.results.summaries import accuracy_table

    added = append_new(out / "results.jsonl", trained.result)
    if trained.complaint:
        say(f"{trained.complaint}; try another lr with --set, or more steps")
    if trained.again:
        say(f"this run is finished, with this result; remove {checkpoint} to run it again")
    elif not added:
        say(f"this run was done; its result is in {out / 'results.jsonl'} already")
    print(trained.result.to_json() if as_json else accuracy_table([trained.result]))

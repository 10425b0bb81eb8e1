"""`train`: adapt with gradients through the model, and test."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import UserError, count
from fewshot.commands.method_names import require_method
from fewshot.commands.options import (
    DEFAULT_MODEL,
    MAX_PIXELS,
    AdaptFromOption,
    BaseToNewOption,
    DataRootOption,
    DatasetOption,
    DeviceOption,
    JsonOption,
    KnownOption,
    LogToOption,
    ManifestOption,
    MaxPixelsOption,
    ModelOption,
    PrecisionOption,
    SaveAdapterOption,
    ScoreOption,
    SettingsOption,
    StoreOption,
    SynthesizeOption,
    ThresholdOption,
    WorkersOption,
)
from fewshot.commands.parsing import parse_k
from fewshot.commands.terminal import say
from fewshot.commands.train_across import train_across
from fewshot.commands.train_work import (
    method_and_settings,
    refuse_contradictions,
    said_of_computing,
    start_or_continue,
    work_of,
)
from fewshot.commands.training_options import (
    CompositionOption,
    FlipOption,
    ImageCropScaleOption,
    LiveOption,
    OfficialOption,
    ResumeOption,
    RunsOption,
    SaveMemoryOption,
    ShotsOrAllOption,
    TrainedMethodArgument,
    TrainingSeedOption,
)

if TYPE_CHECKING:
    from fewshot.endtoend.experiment import Trained


def train(
    method: TrainedMethodArgument = None,
    dataset: DatasetOption = None,
    manifest: ManifestOption = None,
    data_root: DataRootOption = None,
    model: ModelOption = DEFAULT_MODEL,
    shots: ShotsOrAllOption = "16",
    seed: TrainingSeedOption = 1,
    settings: SettingsOption = None,
    composition: CompositionOption = None,
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
    live: LiveOption = False,
    out: RunsOption = Path("runs"),
    save: SaveAdapterOption = None,
    resume: ResumeOption = False,
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
    from fewshot.endtoend.crops import crops_asked, learns_live
    from fewshot.endtoend.display import shown
    from fewshot.endtoend.experiment import run, store_of
    from fewshot.endtoend.finished import checkpoint_path
    from fewshot.endtoend.methods import configure
    from fewshot.endtoend.processor import lacks_bf16
    from fewshot.endtoend.requirements import require_published
    from fewshot.open_set import parse_known
    from fewshot.results.loggers import RunLogger

    if save is not None:
        from fewshot.adapters.adapter import require_suffix

        require_suffix(save)
    require_writable(files={"--save": save}, folders={"--out": out})
    method, fixed = method_and_settings(method, composition, settings)
    chosen = configure(require_method(method, "train"), fixed, seed=seed)
    refuse_contradictions(known, score, base_to_new, synthesize, labeled, threshold, official, save)
    k = parse_k(shots)
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
    if features is not None and not learns_live(
        on_images=chosen.on_images, n_views=features.split("train").n_views, official=official
    ):
        say(f"using {features.path}")
    open_set = None if known is None else parse_known(known, source.dataset)
    work = work_of(chosen, source, k, open_set, base_to_new=base_to_new, synthesize=synthesize)
    asked: list[object] = [crop_scale, flip, official] + ([] if known is None else [known])
    asked += [["base-to-new", synthesize]] if base_to_new else []
    asked += said_of_computing(device, precision) + (["live"] if live else [])
    few = 0 if chosen.unsupervised() else k
    checkpoint = checkpoint_path(out, chosen, source, model, few, seed, *asked)
    start_or_continue(checkpoint, chosen, resume=resume)
    encoder = load(model, device=device, precision=precision)
    if precision == "bf16" and encoder.device.type == "cpu" and lacks_bf16():
        say("this processor has no instructions for bf16; --precision fp32 is faster")
    bars = shown(
        chosen.name,
        work.steps,
        len(source.splits.get("test", ())),
        chosen.step_name,
        work.prompts,
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
    _say_of_steps(trained.result.measures, work.steps)
    _print(trained, out, checkpoint, as_json)
    if save is not None:
        from fewshot.adapters.trained_adapter import of_trained

        adapter = of_trained(trained, chosen, encoder, source, workers=workers or default_workers())
        adapter.save(save)
        say(f"{save}: {adapter.summary()}")


def _say_of_steps(measures: Mapping[str, float], steps: int) -> None:
    """How many of the steps were skipped, and the privacy that they spent, if any."""
    from fewshot.endtoend.privacy import spent

    if skipped := int(measures.get("skipped_steps", 0)):
        say(
            f"{skipped} of {steps} steps were skipped, since gradients overflowed float16 "
            "(the first of a run often do)"
        )
    if "private_steps" in measures:
        say(spent(measures))


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

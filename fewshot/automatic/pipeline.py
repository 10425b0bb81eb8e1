"""A folder of labeled photos in; a fitted, calibrated classifier and one page about it out."""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from cache.datasets.manifest import all_manifests
from cache.datasets.preflight import check_files
from cache.images.decoding_memory import MAX_PIXELS
from cache.location import default_root, model_name, pair_names, require_outside, require_writable
from fewshot.automatic.backbones import Compared, Machine, compare
from fewshot.automatic.commands import commands
from fewshot.automatic.encoding import Encoding, Say, encode_labeled
from fewshot.automatic.examining import Examiner
from fewshot.automatic.gather import gather
from fewshot.automatic.judging import inputs, judge, to_try
from fewshot.automatic.outcome import Outcome
from fewshot.automatic.stopwatch import Stopwatch
from fewshot.automatic.writing import claimed, write

MODEL = "ViT-B-16/openai"


def auto(
    dataset: str | Path,
    *,
    model: str = MODEL,
    models: Sequence[str] | str | None = None,
    out: Path | str | None = None,
    store: Path | str | None = None,
    unlabeled: Path | str | None = None,
    methods: Sequence[str] | str | None = None,
    thorough: bool = False,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 1,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    rehash: bool = False,
    say: Say = lambda lines: None,
) -> Outcome:
    """Find the method that suits the photos, say honestly how good it is, and fit it to all.

    What an interrupted run has encoded is not encoded again; the rest is computed again. Nothing of
    a test split that the user keeps apart is looked at before the last winner is fitted.

    Where there is more to try than quick methods, everything is written twice: as the first answer,
    which says that it is one, and in the end.

    Args:
        dataset: A folder of class folders, a CSV or JSON lines of paths and labels, or a dataset's
            name.
        model: As `encoder.load` names it, or a pair `FIRST+SECOND`.
        models: Names of several to choose among instead, or `quick` or `best`: those of
            `backbones.LISTS` that are on this machine and fast enough. The first answer is then of
            the fastest model.
        out: The folder to write into; `runs/auto/NAME` without it.
        store: Where feature stores lie; `location.default_root()` without it.
        unlabeled: A folder of images without labels; see `gather`.
        methods: The name or names of those to try; without it those that suit so many images and
            classes.
        thorough: Try every method to the end, those that cannot win any more too.
        device: As in `encoder.load`.
        precision: As in `encoder.load`.
        seed: Of folds, resamples and training.
        workers: Threads that decode images; one per core or so without it.
        max_pixels: Width times height of the largest image that is decoded.
        rehash: Read images again whose size and time of modification are as before.
        say: Called with progress notes, lines at a time.

    Returns:
        What was found. In `out` are then adapter.safetensors, report.html, report.json,
        commands.sh and, where there are images without a label, predictions.csv.

    Raises:
        UserError: The photos are not fit to learn from, `out` or `store` lie among them, the model
            cannot be had, or no method could be tried.
    """
    model = model_name(model)
    models = [models] if isinstance(models, str) else models
    found = gather(dataset, Path(unlabeled) if unlabeled else None, max_pixels=max_pixels)
    out = Path(out) if out else Path("runs") / "auto" / found.labeled.title
    root = Path(store) if store else default_root()
    require_outside(Path(dataset), {"--out": out, "--store": root})
    require_writable(folders={"--out": out})
    report = check_files(found.labeled)
    say(report.report())
    source, _ = report.passed(skip_unreadable=True)
    methods = [methods] if isinstance(methods, str) else methods
    asked = to_try(methods, len(source.splits["train"]), len(source.classnames))
    repeating = partial(
        commands,
        dataset=_as_typed(dataset),
        adapter=out / "adapter.safetensors",
        root=None if root == Path("features") else root,
        seed=seed,
        encoding={
            "--device": None if device == "auto" else device,
            "--precision": None if precision == "auto" else precision,
            "--max-pixels": None if max_pixels == MAX_PIXELS else max_pixels,
        },
        again={
            "--models": models and ",".join(models),
            "--out": out,
            "--unlabeled": unlabeled,
            "--methods": methods and ",".join(methods),
            "--thorough": thorough,
            "--seed": None if seed == 1 else seed,
        },
    )

    with claimed(out, source.root):
        stopwatch = Stopwatch(say)
        machine = Machine(device, precision, say)

        @cache
        def encoding(name: str) -> Encoding:
            with stopwatch.timing("loading the model", aloud=True):
                return Encoding(machine.load(name), root, workers, rehash, say)

        if models is not None or pair_names(model) is not None:
            stage = "comparing models"
            answers = compare(
                [model] if models is None else models, machine, report, asked, root=root,
                workers=workers, rehash=rehash, thorough=thorough, seed=seed,
            )  # fmt: skip
        else:
            how = encoding(model)
            with stopwatch.timing("encoding"):
                opened = encode_labeled(report, how)
            stage = "trying methods"
            judged = judge(opened, asked, *inputs(opened), thorough=thorough, seed=seed)
            answers = (Compared(model, opened, one, ()) for one in judged)
        examine = Examiner(found.unlabeled, encoding, stopwatch, seed)
        for answer in stopwatch.each(stage, answers):
            examined = examine(answer)
            outcome = Outcome(
                dataset=str(dataset),
                out=out,
                source=source,
                report=report,
                store=answer.store,
                validation=answer.validation,
                adapter=examined.adapter,
                diagnostics=examined.diagnostics,
                tested=examined.tested,
                unlabeled=examined.unlabeled,
                commands=repeating(
                    answer.store,
                    examined.fitted.method,
                    temperature=examined.adapter.calibration.temperature,
                    skip=bool(answer.store.skipped),
                ),
                seconds=stopwatch.seconds,
                backbones=answer.backbones,
            )
            write(outcome)
            if answer.validation.pending:
                say(outcome.first_answer())
        return outcome


def _as_typed(dataset: str | Path) -> str:
    """The images as commands find them: a folder called like a known dataset goes by ./ there."""
    known = {name for manifest in all_manifests() for name in (manifest.name, *manifest.aliases)}
    return f"./{dataset}" if str(dataset) in known and Path(dataset).is_dir() else str(dataset)

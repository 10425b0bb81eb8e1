"""A folder of labeled photos in; a fitted, calibrated classifier and one page about it out."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cache.decoding_memory import MAX_PIXELS
from cache.errors import UserError
from cache.location import default_root, model_name, pair_names, require_outside
from cache.manifest import all_manifests
from cache.pair import same_weight
from cache.preflight import check_files
from cache.store import FeatureStore
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.making import of_fitted
from fewshot.automatic.backbones import Compared, Machine, compare
from fewshot.automatic.commands import commands
from fewshot.automatic.diagnostics import Diagnostics, diagnose
from fewshot.automatic.encoding import Encoding, Say, encode_labeled, encode_unlabeled
from fewshot.automatic.gather import gather
from fewshot.automatic.judging import CrossValidation, inputs, judge, refit, to_try
from fewshot.automatic.outcome import Outcome, Tested
from fewshot.automatic.unlabeled import Unlabeled, classify_unlabeled
from fewshot.automatic.writing import claimed, write
from fewshot.classifier import classify
from fewshot.fitted import Fitted
from fewshot.fitting import query
from fewshot.methods import GDA
from fewshot.metrics import accuracy, wilson
from fewshot.model_selection.calibration import Calibration, calibrate
from fewshot.model_selection.conformal import ByClass, by_class
from fewshot.model_selection.unknown_classes import OpenSet, find_open_set

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
    seconds: dict[str, float] = {}
    model = model_name(model)
    models = [models] if isinstance(models, str) else models
    found = gather(dataset, Path(unlabeled) if unlabeled else None, max_pixels=max_pixels)
    out = Path(out) if out else Path("runs") / "auto" / found.labeled.dataset.removesuffix("-all")
    root = Path(store) if store else default_root()
    require_outside(Path(dataset), {"--out": out, "--store": root})
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder; give --out a place for one")
    report = check_files(found.labeled)
    say(report.report())
    source, _ = report.passed(skip_unreadable=True)
    methods = [methods] if isinstance(methods, str) else methods
    asked = to_try(methods, len(source.splits["train"]), len(source.classnames))

    with claimed(out, source.root):
        machine = Machine(device, precision, say)
        hows: dict[str, Encoding] = {}  # by the model

        def how(name: str) -> Encoding:
            if name not in hows:
                with _timed(seconds, "loading the model", say):
                    hows[name] = Encoding(machine.load(name), root, workers, rehash, say)
            return hows[name]

        if models is not None or pair_names(model) is not None:
            stage = "comparing models"
            answers = compare(
                [model] if models is None else models, machine, report, asked, root=root,
                workers=workers, rehash=rehash, thorough=thorough, seed=seed,
            )  # fmt: skip
        else:
            encoding = how(model)
            with _timed(seconds, "encoding"):
                opened = encode_labeled(report, encoding)
            stage = "trying methods"
            judged = judge(opened, asked, *inputs(opened), thorough=thorough, seed=seed)
            answers = (Compared(model, opened, one, ()) for one in judged)
        others: dict[str, FeatureStore | None] = {}  # by the model
        open_sets: dict[str, OpenSet | None] = {}  # by the features: no method matters
        examined: dict[tuple[str, str], tuple[Fitted, Diagnostics, Unlabeled | None]] = {}
        for answer in _each_timed(seconds, stage, answers):
            opened, validation = answer.store, answer.validation
            features = f"{opened.fingerprint} {opened.logit_scale}"
            support_of, text_for = inputs(opened)
            calibration = _calibration(validation)
            if features not in open_sets and validation.winner is not None:
                with _timed(seconds, "hiding classes"):
                    open_sets[features] = find_open_set(
                        support_of(GDA()), text_for(GDA()),
                        logit_scale=opened.logit_scale, seed=seed,
                    )  # fmt: skip
            if found.unlabeled is not None and answer.model not in others:
                encoding = how(answer.model)
                with _timed(seconds, "encoding"):
                    others[answer.model] = encode_unlabeled(found.unlabeled, encoding)
            key = features, validation.method.name
            if key not in examined:
                with _timed(seconds, "fitting the winner", say):
                    fitted = refit(opened, validation, support_of, text_for, seed=seed)
                method, temperature = fitted.method, calibration.temperature
                with _timed(seconds, "looking at labels"):
                    diagnostics = diagnose(
                        validation, method, temperature, support_of(method), text_for(method),
                        seed=seed,
                    )  # fmt: skip
                beside = None
                photos = others.get(answer.model)
                if found.unlabeled is not None and photos is not None:
                    beside = classify_unlabeled(
                        fitted, temperature, same_weight(photos, opened), found.unlabeled
                    )
                examined[key] = fitted, diagnostics, beside
            fitted, diagnostics, beside = examined[key]
            tested = None
            if "test" in opened.splits and not validation.pending:
                tested = _tested(opened, fitted)
            outcome = Outcome(
                dataset=str(dataset),
                out=out,
                source=source,
                report=report,
                store=opened,
                validation=validation,
                adapter=_adapter(fitted, validation, calibration, open_sets.get(features), tested),
                diagnostics=diagnostics,
                tested=tested,
                unlabeled=beside,
                commands=commands(
                    opened,
                    fitted.method,
                    dataset=_as_typed(dataset),
                    adapter=out / "adapter.safetensors",
                    temperature=calibration.temperature,
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
                    skip=bool(opened.skipped),
                ),
                seconds=seconds,
                backbones=answer.backbones,
            )
            write(outcome)
            if validation.pending:
                say(outcome.first_answer())
        return outcome


def _as_typed(dataset: str | Path) -> str:
    """The images as commands find them: a folder called like a known dataset goes by ./ there."""
    known = {name for manifest in all_manifests() for name in (manifest.name, *manifest.aliases)}
    return f"./{dataset}" if str(dataset) in known and Path(dataset).is_dir() else str(dataset)


def _calibration(validation: CrossValidation) -> Calibration:
    """Calibrate the winner on its out-of-fold logits; its accuracy is corrected for the choice."""
    winner, selection = validation.winner, validation.selection
    if winner is None or selection is None:
        return Calibration()
    seen = winner.judged
    found = calibrate(winner.logits[seen], validation.labels[seen], "cv")
    return replace(found, accuracy=selection.accuracy, interval=selection.interval)


def _adapter(
    fitted: Fitted,
    validation: CrossValidation,
    calibration: Calibration,
    open_set: OpenSet | None,
    tested: Tested | None,
) -> Adapter:
    """The winner, with how it was chosen among what is told of its training."""
    selection, winner = validation.selection, validation.winner
    held_out: ByClass = ()
    if winner is not None:
        seen, t = winner.judged, calibration.temperature
        held_out = by_class(winner.logits[seen], validation.labels[seen], t)
    more: dict[str, Any] = {
        "tune": "cv" if fitted.method.grid and winner is not None else "none",
        "tried": [one.name for one in validation.tried],
        **({"still to be tried": list(validation.pending)} if validation.pending else {}),
        "expected accuracy": selection and selection.accuracy,
        "expected accuracy, 95 % interval": selection and selection.interval,
    }
    if tested is not None:
        more |= {"test accuracy": tested.accuracy, "test images": tested.images}
    return of_fitted(
        fitted, calibration=calibration, held_out=held_out, open_set=open_set, more=more
    )


def _tested(store: FeatureStore, fitted: Fitted) -> Tested:
    """The winner on the user's own test images."""
    test = store.split("test")
    labels = torch.from_numpy(test.labels)
    right = accuracy(classify(fitted.classifier, query(test, fitted.method)), labels)
    return Tested(len(labels), right, wilson(right, len(labels)))


@contextmanager
def _timed(seconds: dict[str, float], stage: str, say: Say | None = None) -> Iterator[None]:
    """Record how long a stage takes; `say` announces one that shows no progress."""
    if say is not None:
        say(stage)
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def _each_timed(
    seconds: dict[str, float], stage: str, answers: Iterator[Compared]
) -> Iterator[Compared]:
    """Yield each answer, and record how long they all take."""
    while True:
        with _timed(seconds, stage):
            answer = next(answers, None)
        if answer is None:
            return
        yield answer

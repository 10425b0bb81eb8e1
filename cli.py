"""The command line: parse, one call, print.

Results go to stdout, progress and reports to stderr. What a user can put right is one line and exit
code 2; Ctrl-C is 130. Heavy imports wait until a command needs them.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from cache.errors import UserError, unknown

# Threads that wait for one another should sleep, not spin: decoding images beside a running model
# is then several times faster. Set here because torch reads it once, when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cache.source import Source
    from cache.store import FeatureStore
    from fewshot.sampling import Sample

DEFAULT_MODEL = "ViT-B-16/openai"
INTERRUPTED = 130

app = typer.Typer(
    name="fewshot",
    help="Few-shot adaptation of CLIP on cached features: encode once, fit in seconds.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would take "[default: ...]" in a help text for markup
)

Dataset = Annotated[
    str | None,
    typer.Option(help="A name from `fewshot datasets`, a folder of images, or a CSV or JSONL."),
]
ManifestFile = Annotated[
    Path | None, typer.Option("--manifest", help="Your own manifest (TOML) instead of a name.")
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Where datasets lie. [default: $FEWSHOT_DATA or ./data]")
]
Model = Annotated[
    str,
    typer.Option(
        envvar="FEWSHOT_MODEL",
        help="As open_clip names it: ViT-B-16/openai, hf-hub:…, local-dir:…, tiny.",
    ),
]
StoreRoot = Annotated[
    Path | None,
    typer.Option("--store", help="Where stores lie. [default: $FEWSHOT_STORE or ./features]"),
]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no name may fail in a terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        given = sys.argv[1:] if arguments is None else arguments
        code = app(args=given or ["--help"], standalone_mode=False) or 0
    except UserError as error:
        return _complain(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit):  # the reader of our output, such as `head`, has enough;
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # typer then exits by itself
        return 0
    except OSError as error:
        if error.errno not in _SURROUNDINGS:
            raise
        where = f" at {error.filename}" if error.filename else ""
        return _complain(f"{error.strerror}{where}; mend that, and the same command goes on", 2)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own, of a class it keeps private
        if usage is None:
            raise
        return _complain(f"{usage().rstrip('.')}; see fewshot --help", 2)
    if code == INTERRUPTED:
        return _complain(
            "interrupted; the same command starts again, an extraction or a bench where it was",
            code,
        )
    return int(code)


_SURROUNDINGS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}


def _complain(message: str, code: int) -> int:
    print(f"fewshot: {' '.join(message.split())}", file=sys.stderr)
    return code


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@app.command()
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
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Encode the I-th of N parts only; a plain run assembles."),
    ] = None,
    engine: Annotated[str, typer.Option(help="serial, process or ray.")] = "serial",
    processes: Annotated[int, typer.Option(min=1, help="Workers of process and ray.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and report only.")] = False,
) -> None:
    """Encode images and prompts once, into a feature store."""
    from cache.extract import Recipe, default_workers
    from cache.extract import extract as extract_to
    from cache.location import default_root, require_outside, store_path
    from cache.prompts import prompt_sets
    from cache.source import find, pooled

    part = _part(shard)
    root = store or default_root()
    if dataset is not None:
        require_outside(Path(dataset), {"--store": root})
    source = find(dataset, manifest, root=data_root, download=download)
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
        _say(f"would encode {images} images and {sentences} prompts with {model} into {path}")
        return
    from cache.encoder import load

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
        _say(f"part {shard} of {path} is encoded; the command without --shard assembles all")
    else:
        print(path if built else f"{path} (already there)")


def _support_rows(
    source: "Source", shots: str | None, seeds: str
) -> tuple["NDArray[np.int64] | None", dict[str, list[int]] | None]:
    """The train rows of the few-shot sets asked for, and which those sets are."""
    if shots is None:
        return None, None
    import numpy as np

    from fewshot.sampling import draw

    labels = [item.label for item in source.splits.get("train", ())]
    only = {"shots": _numbers("--support-only", shots), "seeds": _numbers("--seeds", seeds)}
    rows = [
        draw(labels, source.classnames, shots=k, seed=seed).train
        for k in only["shots"]
        for seed in only["seeds"]
    ]
    return np.unique(np.concatenate(rows)), only


def _checked(
    source: "Source", train_rows: "NDArray[np.int64] | None", skip: bool
) -> tuple["Source", list[str]]:
    """The source after its pre-flight report, and the images left out of it."""
    from cache.preflight import check
    from cache.progress import progress

    rows = {split: range(len(items)) for split, items in source.splits.items()}
    if train_rows is not None:
        rows |= {"train": train_rows.tolist()}
    with progress(f"{source.dataset}: files", sum(map(len, rows.values()))) as advance:
        report = check(source, rows=rows, advance=advance)
    _say(report.report())
    return report.passed(skip_unreadable=skip)


def _template_set(source: "Source", name: str) -> tuple[str, ...]:
    if name not in source.template_sets:
        raise unknown(f"template set of {source.dataset}", name, source.template_sets)
    return source.template_sets[name]


def _part(shard: str | None) -> tuple[int, int] | None:
    if shard is None:
        return None
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard wants I/N with 1 <= I <= N, such as 1/4; got {shard!r}")
    return int(index), int(count)


def _numbers(option: str, text: str) -> list[int]:
    """The integers of a list such as 1,2,4."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} wants integers such as 1,2,4; got {text!r}") from None
    return list(dict.fromkeys(numbers))


@app.command()
def fit(
    method: Annotated[str, typer.Argument(help="Its name; `fewshot methods` lists them.")],
    dataset: Annotated[
        str | None, typer.Option(help="Whose store. [default: the one extracted last]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Which model's store. [default: the one extracted last]")
    ] = None,
    shots: Annotated[
        str, typer.Option(metavar="K[,K…]|all", help="Images per class, or all there are.")
    ] = "16",
    seed: Annotated[
        str, typer.Option(metavar="S[,S…]", help="What draws them; published results: 1,2,3.")
    ] = "1",
    tune: Annotated[
        str | None,
        typer.Option(help="none, cv, val or full-val. [default: cv, and none at one shot]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Fix a hyper-parameter."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Which prompt set of the store. [default: templates]")
    ] = None,
    sample: Annotated[
        Path | None, typer.Option(help="Take the few shots from this file instead of drawing.")
    ] = None,
    export_sample: Annotated[
        Path | None, typer.Option(help="Write the few shots that are drawn to this file.")
    ] = None,
    base_to_new: Annotated[
        bool, typer.Option("--base-to-new", help="Learn half of the classes, test both halves.")
    ] = False,
    test_on: Annotated[
        str | None,
        typer.Option(metavar="DATASET[,…]", help="Test on these instead, having learned this one."),
    ] = None,
    imbalance: Annotated[
        str | None,
        typer.Option(help="Unequal classes: long-tail:100, step:10, or natural (all images)."),
    ] = None,
    save_predictions: Annotated[
        Path | None, typer.Option(help="A folder for predictions, for `fewshot compare`.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Keep what was fitted, for `predict`."),
    ] = None,
    store: StoreRoot = None,
    results: Annotated[
        Path, typer.Option(help="Where results are appended, one JSON line each.")
    ] = Path("runs/results.jsonl"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per result, not a table.")
    ] = False,
) -> None:
    """Adapt from a few labeled images per class, and test."""
    from cache.store import FeatureStore
    from fewshot.evaluation import base_to_new as evaluate_base_to_new
    from fewshot.evaluation import evaluate, transfer
    from fewshot.results.log import append
    from fewshot.results.tables import accuracy_table
    from fewshot.settings import configure

    if shots == "all":
        shots, imbalance = "0", imbalance or "natural"
    others = [flag for flag in (base_to_new, test_on, imbalance) if flag]
    if len(others) > 1 or (others and (sample or export_sample)):
        raise UserError(
            "--base-to-new, --test-on and --imbalance exclude one another, and --sample and "
            "--export-sample with them; give one"
        )
    fixed = _settings("--set", settings)
    chosen = configure(method, fixed)  # a mistake in it shows before a store is looked for
    draws = [(k, s) for k in _numbers("--shots", shots) for s in _numbers("--seed", seed)]
    opened = FeatureStore.open(_store(store, dataset, model))
    targets = [
        FeatureStore.open(_store(store, name, opened.model))
        for name in (test_on.split(",") if test_on else ())
    ]
    chosen = configure(method, fixed, logit_scale=opened.logit_scale)
    if save is None and not targets and "test" not in opened.splits:
        raise UserError(
            f"{opened.path} has no test split, so there is nothing to report; keep a classifier "
            "of it with --save FILE, or extract without --all-train"
        )
    few = _sample(opened, draws, sample, export_sample)
    if save is not None:
        if base_to_new or targets or len(draws) > 1:
            raise UserError(
                "--save keeps one adapter of all classes; give one --shots and one --seed, "
                "and neither --base-to-new nor --test-on"
            )
        from fewshot.adapters.making import fit_and_save

        [(k, s)] = draws
        saved, result = fit_and_save(
            opened, chosen, save, shots=k, seed=s, tune=tune, fixed=fixed, prompt_set=prompts,
            sample=few, imbalance=imbalance, predictions=save_predictions,
        )  # fmt: skip
        if result is not None:
            append(results, result)
            print(result.to_json() if as_json else accuracy_table([result]))
        _say(f"{save}: {saved.summary()}")
        return
    if few is not None or chosen.learns_from in ("text", "images"):
        draws = draws[:1]
    done = []
    for k, s in draws:
        ask = Ask(
            shots=k, seed=s, tune=tune, fixed=fixed, prompt_set=prompts, save=save_predictions
        )
        if base_to_new:
            new = [evaluate_base_to_new(opened, chosen, **ask)]
        elif targets:
            new = transfer(opened, targets, chosen, **ask)
        else:
            new = [evaluate(opened, chosen, sample=few, imbalance=imbalance, **ask)]
        for result in new:
            append(results, result)
            done.append(result)
            if as_json:
                print(result.to_json(), flush=True)
    if not as_json:
        print(accuracy_table(done))


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="Its name; `fewshot methods` lists them.")],
    dataset: Dataset = None,
    manifest: ManifestFile = None,
    data_root: DataRoot = None,
    model: Model = DEFAULT_MODEL,
    shots: Annotated[int, typer.Option(min=1, help="Images per class.")] = 16,
    seed: Annotated[int, typer.Option(help="What draws them and orders the batches.")] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set a hyper-parameter."),
    ] = None,
    official: Annotated[
        bool,
        typer.Option("--official", help="The published recipe to the letter, few shots included."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (fp32 on a CPU, fp16 on CUDA), fp32, bf16 or fp16.")
    ] = "auto",
    store: StoreRoot = None,
    crop_scale: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Least and greatest share of an image in a crop. [default: the paper's]"),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirror half of the crops. [default: the paper's]"),
    ] = None,
    save_memory: Annotated[
        bool,
        typer.Option("--save-memory", help="Compute activations twice instead of keeping them."),
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Encode images even where a store has their features.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where checkpoints and results go.")] = Path("runs"),
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Keep what was trained, for `predict`."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint of the same run.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images. [default: per core]")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as a JSON object, not a table.")
    ] = False,
) -> None:
    """Adapt with gradients through the model, and test: CoOp, CLIP-LoRA and their like."""
    from cache.encoder import load
    from cache.extract import default_workers
    from cache.source import find
    from fewshot.endtoend.display import shown
    from fewshot.endtoend.experiment import checkpoint_path, run, store_of
    from fewshot.endtoend.methods import configure
    from fewshot.results.log import append
    from fewshot.results.tables import accuracy_table

    if save is not None:
        from fewshot.adapters.adapter import require_suffix

        require_suffix(save)
    fixed = _settings("--set", settings)
    chosen = configure(method, fixed, seed=seed)
    if official and (fixed or crop_scale is not None or flip is not None):
        raise UserError("--official is the published recipe; leave out --set, --crop-scale, --flip")
    if official and not chosen.published:
        raise UserError(
            f"{method} has no published recipe for few shots of CLIP; leave --official out"
        )
    source = find(dataset, manifest, root=data_root)
    features = None if live else store_of(source, model, store)
    if features is not None:
        _say(f"using {features.path}")
    asked = (shots, seed, crop_scale, flip, official)
    checkpoint = checkpoint_path(out, chosen, source, model, *asked)
    if checkpoint.exists() and not resume:
        raise UserError(
            f"{checkpoint} is from an earlier start of this run; --resume goes on from it, "
            "removing it begins anew"
        )
    encoder = load(model, device=device, precision=precision)
    steps = chosen.plan(shots, shots * len(source.classnames)).iterations
    with shown(chosen.name, steps, len(source.splits.get("test", ()))) as (watch, advance):
        trained = run(
            chosen,
            encoder,
            source,
            shots=shots,
            seed=seed,
            store=features,
            fixed=fixed,
            crop_scale=crop_scale,
            flip=flip,
            official=official,
            save_memory=save_memory,
            checkpoint=checkpoint,
            workers=workers or default_workers(),
            watch=watch,
            advance=advance,
        )
    append(out / "results.jsonl", trained.result)
    print(trained.result.to_json() if as_json else accuracy_table([trained.result]))
    if save is not None:
        from fewshot.adapters.making import of_trained

        adapter = of_trained(trained, chosen, encoder, source, workers=workers or default_workers())
        adapter.save(save)
        _say(f"{save}: {adapter.summary()}")


class Ask(TypedDict):
    """What all protocols are asked alike."""

    shots: int
    seed: int
    tune: str | None
    fixed: dict[str, str]
    prompt_set: str | None
    save: Path | None


@app.command()
def bench(
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file with these options as keys; flags override it."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="NAME[,…]", help="Names. [default: all]")
    ] = None,
    datasets: Annotated[
        str | None, typer.Option(metavar="NAME[,…]", help="Whose stores. [default: all]")
    ] = None,
    models: Annotated[
        str | None, typer.Option(metavar="NAME[,…]", help="Which models' stores. [default: all]")
    ] = None,
    shots: Annotated[
        str | None, typer.Option(metavar="K[,K…]", help="Images per class. [default: 1,2,4,8,16]")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="S[,S…]", help="What draws them. [default: 1,2,3]")
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(help="none, cv, val or full-val. [default: cv, and none at one shot]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[METHOD.]NAME=VALUE[,…]",
            help="Fix a hyper-parameter at each value in turn; several give all combinations.",
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="SET[,…]", help="Prompt sets. [default: templates]")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="few-shot, base-to-new, domain-generalization or cross-dataset. "
            "[default: few-shot]"
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="What the last two learn; --datasets are then tested.")
    ] = None,
    imbalance: Annotated[
        str | None,
        typer.Option(help="Unequal classes: long-tail:100, step:10, or natural (all images)."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Processes; of 2 or more, one that dies costs its cell alone. [default: 1]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of results. [default: runs/bench]")
    ] = None,
    store: StoreRoot = None,
    predictions: Annotated[
        bool | None,
        typer.Option(
            "--predictions/--no-predictions",
            help="Save them, for `fewshot compare`. [default: predictions]",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells that are not done, and stop.")
    ] = False,
) -> int:
    """Run methods on datasets at several shots and seeds, and print the means.

    What is done already is skipped, so the same command goes on after a stop. Cells that fail are
    reported at the end, with exit code 1; the others run.
    """
    from fewshot.bench.benchmark import pending, run
    from fewshot.bench.config import configured, parse_settings
    from fewshot.bench.mean_table import mean_table
    from fewshot.bench.plan import plan
    from fewshot.results.tables import text

    asked = configured(
        {
            "methods": _names(methods),
            "datasets": _names(datasets),
            "models": _names(models),
            "shots": None if shots is None else tuple(_numbers("--shots", shots)),
            "seeds": None if seeds is None else tuple(_numbers("--seeds", seeds)),
            "tune": tune,
            "settings": parse_settings(settings or ()),
            "prompts": _names(prompts),
            "protocol": protocol,
            "source": source,
            "imbalance": imbalance,
            "jobs": jobs,
            "out": out,
            "store": store,
            "predictions": predictions,
        },
        config,
    )
    planned = plan(asked)
    if dry_run:
        for task in pending(asked, planned, _say):
            print(*task, sep="\n")
        return 0
    outcome = run(asked, planned, _say)
    print(text(mean_table(outcome.runs)))
    return 1 if outcome.failures else 0


def _names(text: str | None) -> tuple[str, ...] | None:
    """The names of a list such as a,b; None where there is no list."""
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A file of predictions, or a method.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, or another's.")],
    results: Annotated[
        Path, typer.Option(help="Where the methods' results are: a file, or a bench's folder.")
    ] = Path("runs/results.jsonl"),
    dataset: Annotated[
        str | None, typer.Option(metavar="D[,D…]", help="Only these datasets.")
    ] = None,
    shots: Annotated[str | None, typer.Option(metavar="K[,K…]", help="Only these shots.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="S[,S…]", help="Only these seeds.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON objects, one per line of the table.")
    ] = False,
) -> None:
    """Compare predictions image by image: is A better than B by more than chance?"""
    from fewshot.results import comparisons

    files = [one for one in (a, b) if one.endswith(".npz")]
    if len(files) == 1:
        raise UserError(f"give two files of predictions or two methods; got one file, {files[0]}")
    if files:
        contests = [comparisons.compare_files(Path(a), Path(b))]
    else:
        contests = comparisons.compare_runs(
            results,
            a,
            b,
            datasets=_names(dataset) or (),
            shots=_numbers("--shots", shots) if shots else (),
            seeds=_numbers("--seed", seed) if seed else (),
        )
    for i, contest in enumerate(contests):
        if as_json:
            print("\n".join(comparisons.as_json(contest)))
        else:
            print(("\n" if i else "") + comparisons.as_table(contest))


@app.command()
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Files of results, or folders of results.jsonl. [default: runs]"),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="Of the tables printed: text, md, latex or csv.")
    ] = "text",
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for report.html, and every table and drawing as files."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Where to write the page alone.")] = None,
    published: Annotated[
        bool,
        typer.Option("--published/--no-published", help="Show published figures beside ours."),
    ] = True,
    tsne: Annotated[
        str | None,
        typer.Option(metavar="METHOD[,…]", help="Map test images before and after these."),
    ] = None,
    store: StoreRoot = None,
) -> None:
    """Tables, drawings and one HTML page of results, beside published ones."""
    from cache.location import default_root
    from fewshot.report import build as reports

    read = reports.read(runs or [Path("runs")])
    made = reports.make(
        read.results,
        notes=read.notes,
        with_published=published,
        tsne=_names(tsne) or (),
        stores=store or default_root(),
    )
    for note in made.notes[1:]:
        _say(note)
    if out is None and html is None:
        print(reports.main_tables(made, form))
        return
    if html is not None:
        print(reports.write_page(made, html))
    if out is not None:
        written = reports.write(made, out)
        print(f"{written[0]} and {len(written) - 1} files of tables and figures beside it")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show this one in full.")] = None,
) -> None:
    """List the methods of `fit` and of `train`, or show one's settings."""
    from fewshot.endtoend.methods import METHODS as TRAINED
    from fewshot.methods import METHODS
    from fewshot.settings import describe

    every: dict[str, type[object]] = {**METHODS, **TRAINED}
    if name is not None:
        print(describe(name, every))
        return
    _table(
        ("method", "command", "learns from", "tuned by default", "what it is"),
        [
            (
                name,
                "fit" if name in METHODS else "train",
                getattr(method, "learns_from", "labels"),
                ", ".join(getattr(method, "grid", ())),
                (method.__doc__ or "").strip().splitlines()[0],
            )
            for name, method in every.items()
        ],
    )


def _store(root: Path | None, dataset: str | None, model: str | None) -> Path:
    """The store that is meant; where that takes a choice, says which."""
    from cache.location import default_root, find_store

    path, chosen = find_store(root or default_root(), dataset, model)
    if chosen or dataset is None:
        _say(f"using {path}")
    return path


def _sample(
    store: "FeatureStore", draws: list[tuple[int, int]], given: Path | None, export: Path | None
) -> "Sample | None":
    """The few shots of a file, or those that are to be written to one."""
    from fewshot.sample_file import read_sample, write_sample
    from fewshot.sampling import draw

    if given is not None and export is not None:
        raise UserError("--sample and --export-sample exclude each other; copy the file instead")
    if given is not None:
        return read_sample(given, store)
    if export is None:
        return None
    if len(draws) > 1:
        raise UserError("--export-sample writes one sample; give one --shots and one --seed")
    val = store.labels("val") if "val" in store.splits else None
    [(shots, seed)] = draws
    few = draw(store.labels("train"), store.classnames, shots=shots, seed=seed, val_labels=val)
    write_sample(export, few, store)
    return few


@app.command()
def auto(
    photos: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="Class folders, or a table of path and label."),
    ],
    model: Model = DEFAULT_MODEL,
    unlabeled: Annotated[
        Path | None,
        typer.Option(
            "--unlabeled",
            "--unlabelled",
            help="A folder of photos without labels. [default: FOLDER/unlabeled]",
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="M[,M…]", help="Try these. [default: those that suit]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write into. [default: runs/auto/NAME]")
    ] = None,
    store: StoreRoot = None,
    seed: Annotated[int, typer.Option(help="Of folds and training.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (fp32 on a CPU, fp16 on CUDA), fp32, bf16 or fp16.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images. [default: per core]")
    ] = None,
) -> None:
    """Find what suits your labeled photos, how good it is, and keep it: one page tells all."""
    from fewshot.automatic.pipeline import auto as run

    outcome = run(
        photos,
        model=model,
        out=out,
        store=store,
        unlabeled=unlabeled,
        methods=_names(methods),
        device=device,
        precision=precision,
        seed=seed,
        workers=workers,
        say=_say,
    )
    print(outcome.summary())


@app.command()
def predict(
    adapter: Annotated[Path, typer.Argument(help="An adapter's file, as `fit --save` writes.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|FOLDER|PATTERN|-…", help="What to classify; - reads paths from stdin."
        ),
    ],
    top: Annotated[int, typer.Option(help="Classes told of each image.")] = 5,
    form: Annotated[str, typer.Option("--format", help="table, csv or jsonl.")] = "table",
    min_confidence: Annotated[
        float, typer.Option(metavar="P", help="Less probable than this (0..1) is `unknown`.")
    ] = 0.0,
    model: Annotated[
        str | None,
        typer.Option(help="Where the adapter's model is now. [default: as it was called then]"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (fp32 on a CPU, fp16 on CUDA), fp32, bf16 or fp16.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images. [default: per core]")
    ] = None,
) -> None:
    """Classify images with a saved adapter; those that cannot be read are told and skipped."""
    from cache.extract import default_workers
    from fewshot.adapters.predict import run

    outcome = run(  # out is taken here: within a bar, rich sends what sys.stdout gets to stderr
        adapter,
        images,
        out=sys.stdout,
        say=_say,
        stdin=sys.stdin.buffer,
        top=top,
        form=form,
        min_confidence=min_confidence,
        model=model,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers or default_workers(),
    )
    _say(str(outcome))


@app.command()
def export(
    adapter: Annotated[Path, typer.Argument(help="An adapter's file, as `fit --save` writes.")],
    to: Annotated[
        str, typer.Option(help="open_clip: a folder that it loads; onnx: pixels to probabilities.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder. [default: the adapter's name and the target]")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Where the adapter's model is now. [default: as it was called then]"),
    ] = None,
) -> None:
    """Write an adapter for other programs, checked against it, with a model card."""
    from fewshot.adapters.export.exporting import export as write

    print(write(adapter, to, out, model=model))


@app.command(name="import")
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

    arrays = _settings("--array", array)
    root = store or default_root()
    path = import_file(
        file,
        dataset,
        model,
        root,
        arrays=arrays,
        if_exists=if_exists,
        logit_scale=logit_scale,
        say=_say,
    )
    print(path)


def _settings(option: str, pairs: list[str] | None) -> dict[str, str]:
    """NAME=VALUE pairs of a repeatable option."""
    settings = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UserError(f"{option} wants NAME=VALUE; got {pair!r}")
        settings[name] = value
    return settings


@app.command()
def inspect(path: Annotated[Path, typer.Argument(help="A store, or an adapter.")]) -> None:
    """Show what a store or an adapter holds and what made it."""
    if path.suffix == ".safetensors":
        from fewshot.adapters.adapter import load_adapter
        from fewshot.adapters.description import describe

        print(describe(load_adapter(path)))
        return
    from cache.store_check import inspect as describe_store

    print(describe_store(path))


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="A store, or an adapter.")]) -> None:
    """Read all of a store or an adapter again and compare it with its digests."""
    if path.suffix == ".safetensors":
        from fewshot.adapters.adapter import load_adapter

        load_adapter(path)  # which compares, whoever asks
        print(f"{path}: whole and unchanged")
        return
    from cache.store import FeatureStore
    from cache.store_check import verify as problems_of

    FeatureStore.open(path)  # what is no store at all says so by itself
    problems = problems_of(path)
    if problems:
        raise UserError(f"{path} is damaged: {'; '.join(problems)}; extract it again")
    print(f"{path}: whole and unchanged")


@app.command()
def datasets(
    name: Annotated[str | None, typer.Argument(help="Show this one in full.")] = None,
    manifest: ManifestFile = None,
    data_root: DataRoot = None,
    store: StoreRoot = None,
) -> None:
    """List datasets, on disk and extracted, or show one."""
    from cache import source
    from cache.location import default_root, find_stores
    from cache.manifest import all_manifests, describe, load_manifest

    if name or manifest:
        print(describe(load_manifest(name or "", manifest)))
        return
    extracted: dict[str, list[str]] = {}
    for path in find_stores(store or default_root()):
        extracted.setdefault(path.parent.name, []).append(path.stem)
    rows = [
        (
            m.name,
            str(m.n_classes or ""),
            source.dataset_status(m, source.data_root(data_root)),
            ", ".join(extracted.pop(m.name, [])),
        )
        for m in all_manifests()
    ]
    rows += [(name, "", "your own", ", ".join(models)) for name, models in extracted.items()]
    _table(("dataset", "classes", "on disk", "extracted with"), rows)


@app.command()
def doctor(
    data_root: DataRoot = None,
    store: StoreRoot = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per finding.")
    ] = False,
) -> int:
    """Look over the installation, the machine and the folders, and say how to mend what is wrong.

    The exit code is 1 where something is.
    """
    import json
    from dataclasses import asdict

    try:
        from cache.location import default_root
        from cache.source import data_root as chosen_root
        from fewshot.doctor.checkup import checkup, report
    except ImportError as error:
        raise UserError(f"the installation is not whole ({error}); install fewshot again") from None

    findings = checkup(store or default_root(), chosen_root(data_root))
    if as_json:
        for finding in findings:
            print(json.dumps(asdict(finding)))
    else:
        print(report(findings))
    return int(any(finding.state == "problem" for finding in findings))


@app.command()
def demo(
    store: StoreRoot = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("runs/demo.png"),
    photos: Annotated[
        Path | None,
        typer.Option(help="Only write a folder of digits as photographs, for trying `auto` on."),
    ] = None,
) -> None:
    """Run the main job on a tiny CLIP and real digits."""
    if photos is not None:
        from fewshot.demo import write_photos

        n_labeled, n_unlabeled = write_photos(photos)
        print(
            f"{photos}: {n_labeled} digits in ten class folders, {n_unlabeled} in unlabeled/; "
            f"now: fewshot auto {photos} --model tiny"
        )
        return
    from cache.encoder import load
    from cache.extract import Recipe, default_workers
    from cache.extract import extract as extract_to
    from cache.location import default_root, store_path
    from cache.manifest import load_manifest
    from cache.progress import progress
    from cache.prompts import prompt_sets
    from cache.source import data_root, resolve
    from cache.store import FeatureStore
    from fewshot import demo as main_job
    from fewshot.results.tables import accuracy_table

    root = store or default_root()
    path = store_path(root, "digits", "tiny")
    print("$ fewshot extract --dataset digits --model tiny", flush=True)
    source = resolve(load_manifest("digits"), data_root(None))
    recipe = Recipe(prompt_sets(source.classnames, source.templates))
    extract_to(source, load("tiny"), recipe, path, workers=default_workers())
    images = sum(map(len, source.splits.values()))
    print(f"{images} handwritten digits, encoded once by the bundled CLIP: {path}\n")
    shots, seeds = (",".join(map(str, numbers)) for numbers in (main_job.SHOTS, main_job.SEEDS))
    print("$ fewshot fit zero-shot --dataset digits --model tiny")
    print(f"$ fewshot fit gda --dataset digits --model tiny --shots {shots} --seed {seeds}")
    with progress("fits", len(main_job.SHOTS) * len(main_job.SEEDS)) as advance:
        results = main_job.run(FeatureStore.open(path), advance)
    print(accuracy_table(results))
    print("Accuracy on the test split in %, mean over three seeds ± 95 % interval.\n")
    main_job.plot(results, plot)
    print(f"Accuracy against shots is drawn in {plot}. Now your own: fewshot extract --help")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    raise SystemExit(main())

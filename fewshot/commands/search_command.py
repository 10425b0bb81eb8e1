"""`search`: find the widths of a composition under a budget, for `train --composition`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import UserError, count
from fewshot.commands.options import (
    DEFAULT_MODEL,
    MAX_PIXELS,
    DataRootOption,
    DatasetOption,
    DeviceOption,
    ManifestOption,
    MaxPixelsOption,
    ModelOption,
    PrecisionOption,
    SettingsOption,
    ShotsOption,
    WorkersOption,
)
from fewshot.commands.parsing import parse_count, parse_ints, parse_pairs
from fewshot.commands.terminal import print_table, say
from fewshot.commands.training_options import (
    BudgetOption,
    CandidatesOption,
    FlipOption,
    FoundOption,
    ImageCropScaleOption,
    JudgesOption,
    SearchSeedOption,
    StrategyOption,
    TowersOption,
    WidthsOption,
)

if TYPE_CHECKING:
    from fewshot.endtoend.search.searching import Searched


def search(
    dataset: DatasetOption = None,
    manifest: ManifestOption = None,
    data_root: DataRootOption = None,
    model: ModelOption = DEFAULT_MODEL,
    budget: BudgetOption = "300k",
    strategy: StrategyOption = "evolution",
    candidates: CandidatesOption = 500,
    widths: WidthsOption = "2,4,8,16",
    towers: TowersOption = "image",
    tune: JudgesOption = "cv",
    shots: ShotsOption = 16,
    seed: SearchSeedOption = 1,
    settings: SettingsOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    crop_scale: ImageCropScaleOption = None,
    flip: FlipOption = None,
    out: FoundOption = Path("composition.toml"),
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
) -> None:
    """Search for the best mix of adapters, LoRA and prompts."""
    from cache.datasets.resolving import find
    from cache.extract import default_workers
    from cache.location import require_writable
    from cache.models.loading import load
    from fewshot.endtoend.search.composition_file import write_composition
    from fewshot.endtoend.search.searching import STRATEGIES
    from fewshot.endtoend.search.searching import search as searched

    if out.suffix != ".toml":
        raise UserError(f"--out must end in .toml; got {out}")
    require_writable(files={"--out": out})
    limit, choices = parse_count("--budget", budget), parse_ints("--widths", widths)
    if min(choices) < 0 or max(choices) < 1:
        raise UserError(f"--widths must be 0 or more, one of them above 0; got {widths!r}")
    fixed = parse_pairs("--set", settings)
    source = find(dataset, manifest, root=data_root, max_pixels=max_pixels)
    folder = out.with_suffix(".search")
    if folder.exists():
        say(f"{folder} is there; what it has of this search is used")
    outcome = searched(
        load(model, device=device, precision=precision),
        source,
        shots=shots,
        seed=seed,
        budget=limit,
        folder=folder,
        settings=fixed,
        towers=towers,
        choices=choices,
        tune=tune,
        strategies=tuple(STRATEGIES) if strategy == "evolution" else ("random",),
        candidates=candidates,
        crop_scale=crop_scale,
        flip=flip,
        workers=workers or default_workers(),
    )
    _print(outcome)
    for name, best in outcome.found.items():
        about = (
            f"The best of {count(candidates, 'composition')} by {name} search on "
            f"{source.dataset}, {count(shots, 'shot')}, seed {seed}: {best.trained:,} trained "
            "parameters."
        )
        path = out if name == strategy else folder / f"{name}.toml"
        write_composition(path, best.composition, about)
    words = ["fewshot", "train", "--composition", str(out)]
    words += ["--dataset", dataset or ""] if manifest is None else ["--manifest", str(manifest)]
    words += [] if data_root is None else ["--data-root", str(data_root)]
    words += ["--model", model, "--shots", str(shots), "--seed", str(seed)]
    words += ["--crop-scale", *map(str, crop_scale)] if crop_scale else []
    words += [] if flip is None else ["--flip" if flip else "--no-flip"]
    say(f"{out}; train and test it: {shlex.join(words)}")
    if strategy != "random":
        say(f"{folder / 'random.toml'}; train the control in the same way")


def _print(outcome: "Searched") -> None:
    """One line for the model as it is and one for the best of each strategy."""
    rows = [("none", outcome.without, 0)]
    rows += [(name, best.fitness, best.trained) for name, best in outcome.found.items()]
    print_table(
        ("search", f"accuracy on {count(outcome.n_judged, 'image')}", "loss", "trained parameters"),
        [(name, f"{100 * right:.1f}", f"{-x:.3f}", f"{n:,}") for name, (right, x), n in rows],
    )

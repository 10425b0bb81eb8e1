"""`demo`: the main job, on data that needs no download."""

from pathlib import Path
from typing import Annotated

import typer

from fewshot.commands.options import StoreOption


def demo(
    store: StoreOption = None,
    plot: Annotated[Path, typer.Option(help="File to draw the plot in.")] = Path("runs/demo.png"),
    photos: Annotated[
        Path | None,
        typer.Option(help="Only write a folder of digits as photos, to try `fewshot auto` on."),
    ] = None,
) -> None:
    """Extract, fit and plot handwritten digits with a tiny CLIP.

    Downloads nothing.
    """
    if photos is not None:
        from fewshot.demo import write_photos

        n_labeled, n_unlabeled = write_photos(photos)
        print(
            f"{photos}: {n_labeled} digits in ten class folders, {n_unlabeled} in unlabeled/; "
            f"now: fewshot auto {photos} --model tiny"
        )
        return
    from cache.extract import default_workers
    from cache.extract import extract as extract_to
    from cache.identity import Recipe
    from cache.loading import load
    from cache.location import default_root, store_path
    from cache.manifest import load_manifest
    from cache.progress import progress
    from cache.prompts import prompt_sets
    from cache.source import data_root, resolve
    from cache.store import FeatureStore
    from fewshot import demo as main_job
    from fewshot.results.summaries import accuracy_table

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

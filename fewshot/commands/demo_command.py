"""`demo`: the main job, on data that needs no download."""

import shlex
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
            f"now: fewshot auto {shlex.quote(str(photos))} --model tiny"
        )
        return
    from cache.location import default_root
    from cache.progress import progress
    from fewshot import demo as main_job
    from fewshot.results.summaries import accuracy_table

    print("$ fewshot extract --dataset digits --model tiny", flush=True)
    digits, images = main_job.extract_digits(store or default_root())
    print(f"{images} handwritten digits, encoded once by the bundled CLIP: {digits.path}\n")
    shots, seeds = (",".join(map(str, numbers)) for numbers in (main_job.SHOTS, main_job.SEEDS))
    print("$ fewshot fit zero-shot --dataset digits --model tiny")
    print(f"$ fewshot fit gda --dataset digits --model tiny --shots {shots} --seed {seeds}")
    with progress("fits", len(main_job.SHOTS) * len(main_job.SEEDS)) as advance:
        results = main_job.run(digits, advance)
    print(accuracy_table(results))
    print("Accuracy on the test split in %, mean over three seeds ± 95 % interval.\n")
    main_job.plot(results, plot)
    print(f"Accuracy against shots is drawn in {plot}.")
    print("Now your own: fewshot auto PHOTOS, or fewshot extract --help")

"""Turn a folder of labeled photos into a classifier, and classify new ones with it.

python examples/own_photos.py FOLDER [NEW_PHOTO ...]

FOLDER has a folder for each class. Without arguments the script draws handwritten digits and uses
the bundled tiny CLIP, so it needs no download.
"""

import sys
from pathlib import Path

import fewshot
from fewshot.demo import write_photos


def main(
    folder: Path,
    new: list[Path],
    model: str = "ViT-B-16/openai",
    methods: list[str] | None = None,
) -> list[str]:
    """Print how good the classifier is and what it makes of the new photos; return the labels."""
    outcome = fewshot.auto(str(folder), model=model, methods=methods)
    print(outcome.summary())  # an honest estimate: the photos that judge did not choose
    predictions = fewshot.predict(outcome.adapter_path, new) if new else []
    for path, prediction in zip(new, predictions, strict=True):
        print(f"{path}: {prediction.label} ({100 * prediction.confidence:.0f} %)")
    return [prediction.label for prediction in predictions]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
    else:
        digits = Path("digits")
        write_photos(digits)
        main(digits, sorted(digits.glob("unlabeled/*.png"))[:5], model="tiny")

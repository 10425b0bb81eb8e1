from typing import Any

import torch

from fewshot.adapters.adapter import Adapter
from fewshot.adapters.export.model_card import TO_FILL_IN, model_card
from fewshot.model_selection.calibration import Calibration

CALIBRATION = Calibration(1.25, 40, "cv", 0.875, (0.739, 0.945), 0.031, 0.062)


def adapter(**more: Any) -> Adapter:
    plain: dict[str, Any] = {
        "method": "gda",
        "settings": {"alpha": 2.0, "shrinkage": "oas"},
        "model": {"name": "hf-hub:org/clip", "weights": "ab" * 32, "tag": "", "dim": 16},
        "preprocessing": {"size": 32, "mean": [0.5, 0.5, 0.5], "exif": True},
        "precision": "fp16",
        "classnames": ("cat", "sea_lion", "<b>x | y"),
        "prompts": (("a photo of a cat.", "a drawing of a cat."), ("a sea lion.",), ("an x.",)),
        "templates": (),
        "training": {
            "dataset": "pets", "shots": 4, "seed": 3, "tune": "cv", "images": 12,
            "images per class": [4, 4, 4], "prompt set": None, "test accuracy": 0.7325,
            "test images": 300, "versions": {"torch": "2.15"},
        },
        "calibration": CALIBRATION,
        "classifier": {},
        "tensors": {"weight": torch.zeros(3, 16)},
    }  # fmt: skip
    return Adapter(**{**plain, **more})


def card(**more: Any) -> str:
    return model_card(adapter(**more), library="onnx", how_to_run="Run it.", files={"f": "12ab"})


def test_the_front_matter_has_the_hub_s_fields_and_leaves_the_licence_open() -> None:
    matter = card().split("---\n")[1]
    fields = [line for line in matter.splitlines() if not line.startswith("#")]
    assert fields == [
        "license:", "library_name: onnx", "pipeline_tag: image-classification", "tags:",
        '- "clip"', '- "few-shot"', '- "gda"', 'base_model: "org/clip"',
    ]  # fmt: skip
    assert "The model's, the data's and this adapter's are three" in matter
    assert "base_model" not in card(model={"name": "ViT-B-16/openai"})


def test_the_card_tells_how_it_was_made_and_how_good_it_is() -> None:
    text = card()
    for line in (
        "| dataset | pets |",
        "| shots | 4 |",
        "| images per class | 4 |",
        "| precision | fp16 |",
        "| alpha | 2.0 |",
        "| torch | 2.15 |",
        f"| weights | {'ab' * 32} |",
        "| f | 12ab |",
        "- Accuracy on the test split: 73.2 % (300 images).",
        "| cat | a photo of a cat. |",
        "4 in all, such as",
        "Run it.",
    ):
        assert line in text.splitlines(), line
    assert (
        "- Accuracy: 87.5 %, 95 % interval 73.9 to 94.5 %, cross-validated on the images it "
        "learned from, each judged by a fit without it (40 images).\n"
        "- Expected calibration error on the same images: 3.1 % at the temperature 1.25 that was "
        "chosen on them, 6.2 % without.\n"
    ) in text
    assert TO_FILL_IN in text.split("## Intended use")[1].split("##")[0]
    assert "prompt set" not in text


def test_what_is_not_known_is_not_claimed() -> None:
    text = card(
        calibration=Calibration(), training={}, preprocessing={}, prompts=(), model={"name": "x"}
    )
    assert "probabilities are not calibrated" in text
    for absent in ("Accuracy", "%", "versions", "test split", "None |"):
        assert absent not in text
    assert "the model's own" in text.lower()
    assert "None: it learned without text." in text
    assert "sentences" in card(prompts=(), training={"text recipe": "unit-mean"})


def test_uneven_classes_are_told_by_their_range() -> None:
    assert "| images per class | 1 to 9 |" in card(training={"images per class": [9, 1, 4]})


def test_names_and_prompts_are_escaped_wherever_they_stand() -> None:
    text = card(prompts=(("a <i>cat</i>",),) * 3)
    assert r"| 2 | &lt;b&gt;x \| y |" in text
    assert "<b>" not in text
    assert "<i>" not in text


def test_where_a_local_model_lay_stays_its_author_s() -> None:
    model = {"name": "local-dir:/home/me/clips/small", "arch": "/home/me/clips/small", "dim": 16}
    text = card(model=model)
    assert "/home/me" not in text
    assert "| name | small |" in text


def test_where_a_file_of_weights_lay_stays_its_author_s() -> None:
    text = card(model={"name": "ViT-B-32@/home/me/clips/own.pt", "arch": "ViT-B-32", "dim": 16})
    assert "/home/me" not in text
    assert "| name | ViT-B-32@own.pt |" in text
    assert "| arch | ViT-B-32 |" in text


def test_of_many_classes_the_first_hundred_are_shown() -> None:
    text = card(classnames=tuple(f"n{i}" for i in range(130)), prompts=())
    assert "| 99 | n99 |" in text
    assert "n100" not in text
    assert "And 30 more, in `classes.json`." in text

"""Results made by hand."""

from dataclasses import replace
from typing import Any

from fewshot.results.log import Result

RESULT = Result(
    method="gda",
    dataset="dtd",
    model="tiny",
    setting="few-shot",
    fitted_on="dtd",
    shots=4,
    seed=1,
    tune="cv",
    imbalance=None,
    accuracy=0.5,
    per_class_accuracy=0.5,
    accuracies={},
    hyperparameters={"alpha": 2.0},
    fixed={},
    measures={},
    text_recipe="unit-mean",
    prompt_set=None,
    n_classes=4,
    n_support=4,
    blend="auto",
    n_views=1,
    n_validation=0,
    n_test=10,
    fit_seconds=0.1,
    predict_seconds=0.1,
    predictions=None,
    fingerprint="f",
    version="0",
)


def result(**changes: Any) -> Result:
    """The result with other values; learned on its own dataset unless said otherwise."""
    if "dataset" in changes:
        changes.setdefault("fitted_on", changes["dataset"])
    return replace(RESULT, **changes)


def zero_shot(**changes: Any) -> Result:
    """A result of zero-shot CLIP."""
    values = {"method": "zero-shot", "setting": "zero-shot", "shots": 0, "seed": 0, "tune": "none",
              "n_views": 0, "hyperparameters": {}}  # fmt: skip
    return result(**(values | changes))


# Two datasets, two numbers of shots, three seeds.
FEW = [
    result(dataset=dataset, shots=shots, seed=seed, accuracy=0.3 + shots / 100 + seed / 1000)
    for dataset in ("dtd", "ucf101")
    for shots in (2, 4)
    for seed in (1, 2, 3)
]

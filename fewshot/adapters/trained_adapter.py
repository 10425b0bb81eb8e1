"""An adapter of what was trained through the model, calibrated on validation images."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.datasets.source import Source
from cache.extraction.provenance import versions
from cache.models.encoder import Encoder
from fewshot.adapters.adapter import Adapter
from fewshot.endtoend.clip import EndToEnd, Learner
from fewshot.endtoend.experiment import Trained
from fewshot.endtoend.photos import center_crops, require_images
from fewshot.endtoend.privacy import ACCOUNT
from fewshot.model_selection.calibration import Calibration, calibrate
from fewshot.model_selection.conformal import ByClass, by_class
from fewshot.results.log import program_version
from fewshot.sampling import VAL_SHOTS, draw


def of_trained(
    trained: Trained,
    method: EndToEnd,
    encoder: Encoder,
    source: Source,
    *,
    workers: int = 2,
    batch_size: int = 64,
) -> Adapter:
    """The adapter of a method that was trained end to end.

    It is calibrated on min(K, 4) validation images of each class, drawn beside the few shots as
    CoOp draws them, or on the first of each where a class has fewer; where there is no val split,
    or it was trained without labels, it is not.

    Args:
        trained: What `run` gave.
        method: What was trained.
        encoder: On what model.
        source: On which images.
        workers: Threads that decode.
        batch_size: Images per forward pass.

    Raises:
        UserError: A validation image cannot be read.
    """
    result = trained.result
    training = {
        "dataset": source.dataset,
        "fingerprint": result.fingerprint,
        "imported": False,
        "shots": result.shots,
        "seed": result.seed,
        "tune": result.tune,
        "images": result.n_support,
        "views": result.n_views,
        "crops": {k: result.hyperparameters.get(k) for k in ("crop_scale", "flip")},
        "test accuracy": result.accuracy,
        "test images": result.n_test,
        "versions": {**versions(), "fewshot-clip": program_version()},
    }
    if account := {name: result.measures[name] for name in ACCOUNT if name in result.measures}:
        training["privacy"] = account
    logits, labels = _validation(trained, encoder, source, workers, batch_size)
    calibration = calibrate(logits, labels, "val")
    return adapter_of_learner(
        trained.learner, method, encoder, source, training,
        calibration, by_class(logits, labels, calibration.temperature),
    )  # fmt: skip


def adapter_of_learner(
    learner: Learner,
    method: EndToEnd,
    encoder: Encoder,
    source: Source,
    training: Mapping[str, Any],
    calibration: Calibration = Calibration(),  # noqa: B008, it is frozen
    held_out: ByClass = (),
) -> Adapter:
    """The adapter of what an end-to-end method holds in its learner.

    Args:
        learner: With its parameters as learned.
        method: The method.
        encoder: Its model.
        source: The dataset that it is for.
        training: What is worth keeping of the training.
        calibration: How sure it may be.
        held_out: By `conformal.by_class`, at the calibration's temperature.
    """
    return Adapter(
        method=method.name,
        settings=asdict(method),
        model=dict(encoder.identity),
        preprocessing={**encoder.preprocess.identity(), "exif": source.exif},
        precision=encoder.precision,
        classnames=source.classnames,
        prompts=(),
        templates=source.templates,
        training=training,
        calibration=calibration,
        classifier=None,
        tensors=learner.state(),
        held_out=tuple(map(tuple, held_out)),
    )


@torch.no_grad()
def _validation(
    trained: Trained, encoder: Encoder, source: Source, workers: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """(M, C) logits of validation images and (M,) their labels.

    M is 0 without such images, and where the training had no labels.
    """
    val, shots = source.splits.get("val", ()), trained.result.shots
    learner, clip = trained.learner, trained.clip
    if not val or not shots:
        return torch.zeros(0, len(source.classnames)), torch.zeros(0, dtype=torch.int64)
    labels = [item.label for item in val]
    of_class = [np.flatnonzero(np.equal(labels, k)) for k in range(len(source.classnames))]
    if min(map(len, of_class)) < min(shots, VAL_SHOTS):  # after hours of training: what there is
        rows = np.concatenate([rows[:VAL_SHOTS] for rows in of_class]).tolist()
    else:
        train = [item.label for item in source.splits["train"]]
        seed = trained.result.seed
        drawn = draw(train, source.classnames, shots=shots, seed=seed, val_labels=labels).val
        assert drawn is not None
        rows = drawn.tolist()
    items = [val[row] for row in rows]
    paths = [item.path for item in items]
    require_images(source, paths, workers=workers)
    encode = learner.images or clip.model.encode_image
    crops = center_crops(source, paths, encoder.preprocess, batch_size=batch_size, workers=workers)
    with clip.autocast():
        fixed = learner.frozen()
        logits = [fixed.logits(encode(pixels.to(clip.device))).cpu() for pixels in crops]
    return torch.cat(logits), torch.tensor([item.label for item in items])

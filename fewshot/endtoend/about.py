"""A training's identity: all that its outcome depends on, as text; checkpoints hold it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from torch import Tensor

from cache.datasets.source import Source
from cache.extraction.digests import digest_of
from cache.models.encoder import Encoder
from cache.store import FeatureStore
from fewshot.endtoend.clip import EndToEnd
from fewshot.endtoend.training_plan import TrainingPlan


def about_training(
    method: EndToEnd,
    plan: TrainingPlan,
    encoder: Encoder,
    source: Source,
    names: Sequence[str],
    paths: Sequence[str],
    labels: Tensor,
    *,
    seed: int,
    store: FeatureStore | None = None,
    views: bool = True,
    synthesized: str | None = None,
    contents: bool = True,
) -> str:
    """All that a training's outcome depends on.

    Args:
        method: What is trained.
        plan: How.
        encoder: The model.
        source: The dataset.
        names: Of the C classes that are told apart.
        paths: N images.
        labels: (N,) their class ids.
        seed: Of all that is random.
        store: Features that take the place of images.
        views: Learn from the store's views.
        synthesized: Fingerprint of what features of new classes are made of, if some are.
        contents: False to go by the images' paths alone, since they may be gone by now.
    """
    data: list[object] = [
        list(map(list, zip(paths, labels.tolist(), strict=True))),
        names,
        source.templates,
        encoder.preprocess.identity(),
    ]
    if store is None and contents:
        data.append([_content(source, path) for path in paths])
    what = {
        "method": method.name,
        "settings": asdict(method),
        "weights": encoder.identity["weights"],
        "precision": encoder.precision,
        "device": encoder.device.type,
        "dataset": source.dataset,
        "data": hashlib.sha256(json.dumps(data).encode()).hexdigest(),
        "seed": seed,
        "store": store.fingerprint if store else None,
        "crops": None if store else [*plan.crop_scale, plan.flip],
    }
    if store is not None and not views:  # unsaid where views are, as it always was
        what["views"] = False
    if synthesized is not None:
        what["synthesized"] = synthesized
    return json.dumps(what, sort_keys=True)


def _content(source: Source, path: str) -> str:
    """A digest of an image's bytes; empty where it cannot be read, which training will say."""
    try:
        return digest_of(source.images.content(path)).hex()
    except OSError:
        return ""

"""An adapter and its model as one module, pixels to probabilities, of which a graph can be made.

A graph has no loop over blocks of queries or over the images of a batch, and is in float32. Its
formulas say `x.shape[0]`, for `len(x)` would fix the size of the batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from cache.models.encoder import Encoder
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.classifiers import put_together
from fewshot.adapters.export.folding import matrix_of
from fewshot.adapters.opened_adapter import attached
from fewshot.classifier import BlockedClassifier, Classifier
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.cocoop import CoCoOp
from fewshot.endtoend.text_tower import require_open_clips
from fewshot.methods import METHODS
from fewshot.model_selection.blending import BlendedClassifier

Step = Callable[[Tensor], Tensor]


class OnnxGraph(nn.Module):
    """Pixels (B, 3, H, W) to logits (B, C) and calibrated probabilities (B, C).

    Attributes:
        encode: Pixels to features (B, D), of the norm that the head needs.
        head: Features to logits.
        calibrate: Logits to probabilities.
    """

    def __init__(self, encode: Step, head: Step, calibrate: Step) -> None:
        super().__init__()
        self.encode, self.head, self.calibrate = encode, head, calibrate

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Both, float32."""
        logits = self.head(self.encode(pixels))
        return logits, self.calibrate(logits)


@torch.no_grad()
def graph_of(adapter: Adapter, encoder: Encoder) -> OnnxGraph:
    """The adapter on its model, which is in float32 on the CPU."""
    calibrate, model = calibration(adapter), encoder.model
    if adapter.classifier is not None:
        folded = matrix_of(adapter)
        if folded is not None and folded.learned is not None:
            return OnnxGraph(folded.tower(model).encode_image, folded.logits, calibrate)
        head = formula(adapter.classifier, adapter.tensors)
        if METHODS[adapter.method].unit_norm:
            return OnnxGraph(lambda x: normalize(model.encode_image(x), dim=-1), head, calibrate)
        return OnnxGraph(model.encode_image, head, calibrate)
    learner, clip = attached(adapter, Clip.of(encoder))
    if adapter.method == CoCoOp.name:
        head = _cocoop(adapter, clip, learner.parameters)
    else:
        head = learner.frozen().logits
    return OnnxGraph(learner.images or clip.model.encode_image, head, calibrate)


def calibration(adapter: Adapter) -> Step:
    """Return (M, C) probabilities of (M, C) logits; of several labels, each class by itself."""
    rule, temperature = adapter.label_rule, adapter.calibration.temperature
    if rule is None:
        return lambda logits: torch.softmax(logits / temperature, dim=1)
    slopes, shifts = torch.tensor(rule.slopes), torch.tensor(rule.shifts)
    return lambda logits: torch.sigmoid(slopes * logits + shifts)


def formula(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Step:
    """Return a saved classifier's (M, C) logits of (M, D) features, without a loop over blocks."""
    single = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    return _without_loops(put_together(plain, single))


def _without_loops(classifier: Classifier) -> Step:
    if isinstance(classifier, BlendedClassifier):
        adapted = _without_loops(classifier.adapted)
        return lambda x: classifier.mixed(x, adapted(x))
    if isinstance(classifier, BlockedClassifier):
        return classifier.block_logits
    return classifier.logits


def _cocoop(adapter: Adapter, clip: Clip, trained: Mapping[str, Tensor]) -> Step:
    """CoCoOp's logits with the prompts of all images of a batch side by side, each in full."""
    method = CoCoOp(**adapter.settings)
    prompts = method.prompts(clip, adapter.classnames)
    tower = require_open_clips(clip.model)
    context = trained["context"]
    first, second = (
        tuple(trained[f"meta_net.{layer}.{part}"] for part in ("weight", "bias"))
        for layer in ("linear1", "linear2")
    )
    n_classes, n_rest, width = prompts.rest.shape
    before = len(prompts.start) + len(context)
    length = min(before + n_rest, tower.length)
    end = before + prompts.end

    def logits(features: Tensor) -> Tensor:
        n, unit = features.shape[0], normalize(features, dim=-1)
        shifts = linear(linear(unit, *first).relu(), *second)
        rows = torch.cat(
            [
                prompts.start.expand(n, n_classes, -1, width),
                (context + shifts[:, None])[:, None].expand(n, n_classes, -1, width),
                prompts.rest[:, : length - before].expand(n, -1, -1, -1),
            ],
            dim=2,
        )
        text = tower.whole(rows.flatten(0, 1), end.repeat(n)).view(n, n_classes, -1)
        return clip.logit_scale * (normalize(text, dim=-1) @ unit[:, :, None])[:, :, 0]

    return logits

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.optim import AdamW

from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.lion import LION, LotteryAdamW
from tests.image_peft import (
    LABELS,
    Parameters,
    assert_learns_as,
    assert_trains_what_it_declares,
    attached,
    count_on_vit_b16,
    pixels,
)


def implicit(parameters: Parameters, layer: str, x: Tensor) -> Tensor:
    """Of one vector, by a loop that gradients go through."""
    weight = parameters[f"{layer}.state"]
    schatten = torch.linalg.svdvals(weight).double().pow(1024).sum().pow(1 / 1024)
    if schatten > 0.9:
        weight = weight * 0.9 / schatten.float()
    u = linear(x, parameters[f"{layer}.inject.weight"], parameters[f"{layer}.inject.bias"])
    z = torch.zeros_like(u)
    for _ in range(200):
        z = torch.tanh(weight @ z + u)
    return linear(z, parameters[f"{layer}.out.weight"], parameters[f"{layer}.out.bias"])


def lion(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
    rows = []
    for top in (0, 16):
        row = []
        for left in (0, 16):
            block = image[:, top : top + 16, left : left + 16]
            prompt = implicit(parameters, "before", block.flatten())
            row.append(block + prompt.view(block.shape))
        rows.append(torch.cat(row, 2))
    feature = model.encode_image(torch.cat(rows, 1)[None])[0]
    standard = feature / feature.norm() * 4  # of 16 numbers
    enriched: Tensor = standard + implicit(parameters, "behind", standard)
    return enriched


def test_features_and_gradients_are_those_of_an_unrolled_restatement_for_any_tower(
    encoder: Encoder, random_resnet: Path
) -> None:
    for at_hand in (encoder, load(f"local-dir:{random_resnet}", device="cpu")):
        assert_learns_as(at_hand, LION(dim=5), lion)


def test_before_training_it_is_zero_shot_clip(encoder: Encoder) -> None:
    _, learner = attached(encoder, LION())
    assert learner.images is not None
    with torch.no_grad():
        ours = normalize(learner.images(pixels()), dim=1)
        theirs = normalize(encoder.model.encode_image(pixels()), dim=1)
    torch.testing.assert_close(ours, theirs)


def test_it_trains_what_it_declares_and_nothing_else(encoder: Encoder) -> None:
    assert_trains_what_it_declares(encoder, LION())


def test_a_vit_b16_gets_blocks_of_16_pixels() -> None:
    of_states, of_inputs, of_outputs = 2 * 16 * 16, 16 * (768 + 512) + 2 * 16, 17 * (768 + 512)
    assert count_on_vit_b16(LION()) == of_states + of_inputs + of_outputs == 42_784


def test_blocks_divide_an_image_that_16_does_not(encoder: Encoder) -> None:
    clip = Clip.of(encoder)
    odd = replace(clip, preprocess=replace(clip.preprocess, size=42))
    parameters, _ = LION(dim=2).insert(odd)
    assert parameters["before.inject.weight"].shape == (2, 3 * 14 * 14)


def test_a_step_moves_what_is_crucial_as_adamw_does_and_the_rest_toward_zero() -> None:
    values = torch.tensor([1.0, -2.0, 0.05, -0.5, 0.0])
    gradients = torch.tensor([1.0, 0.2, 3.0, 0.6, 9.0])
    scores = [1.0, 0.4, 0.15, 0.3, 0.0]  # three of five are to move
    ours, plain = ([nn.Parameter(v.clone()) for v in (values[:2], values[2:])] for _ in range(2))
    for first, second in (ours, plain):
        first.grad, second.grad = gradients[:2].clone(), gradients[2:].clone()
    LotteryAdamW([{"params": ours, "crucial": 0.6}], lr=0.1).step()
    AdamW(plain, lr=0.1).step()
    assert sorted(scores)[-3:] == [0.3, 0.4, 1.0]
    moved = torch.cat([p.detach() for p in plain])
    expected = torch.stack([moved[0], moved[1], torch.tensor(0.0), moved[3], torch.tensor(0.0)])
    torch.testing.assert_close(torch.cat([p.detach() for p in ours]), expected)


def test_what_is_not_crucial_shrinks_by_the_rate() -> None:
    ours = nn.Parameter(torch.tensor([1.0, -0.5, 0.3]))
    ours.grad = torch.tensor([1.0, 0.1, 0.1])
    LotteryAdamW([{"params": [ours], "crucial": 0.3}], lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(ours.detach(), torch.tensor([0.9, -0.4, 0.2]))


def test_where_all_are_crucial_or_none_differ_it_is_adamw(encoder: Encoder) -> None:
    """The first step too: its scores are zero, since the layers' last matrices are."""
    for crucial, moved in ((1.0, 0.1), (0.5, 0.0)):
        _, learner = attached(encoder, LION(crucial=crucial), moved=moved)
        assert learner.images is not None
        learner.loss(learner.images(pixels()), LABELS)[0].backward()  # type: ignore[no-untyped-call]
        plain = [nn.Parameter(p.detach().clone()) for p in learner.parameters.values()]
        for parameter, given in zip(plain, learner.parameters.values(), strict=True):
            parameter.grad = given.grad
        LION(crucial=crucial).optimizer(learner).step()
        AdamW(plain, lr=1e-3, weight_decay=1e-2).step()
        torch.testing.assert_close(list(learner.parameters.values()), plain)


def test_a_trained_head_is_crucial_as_a_whole(encoder: Encoder) -> None:
    method = LION(crucial=0.01, head="trained")
    _, learner = attached(encoder, method)
    head = learner.parameters["head"]
    before = head.detach().clone()
    for parameter in learner.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    method.optimizer(learner).step()
    assert bool((head < before).all())  # the same sign of the gradient everywhere


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim must be a whole number, 1 or more"),
        ({"crucial": 1.5}, "crucial must be"),
        ({"towers": "both"}, "lion changes the image tower only"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LION(**settings)

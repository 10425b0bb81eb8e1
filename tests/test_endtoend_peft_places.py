from typing import Any

import pytest
import torch

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.difffit import DiffFit
from fewshot.endtoend.methods.fact import FacT
from fewshot.endtoend.methods.fine_tuning import BitFit, FullFineTuning, LNTune
from fewshot.endtoend.methods.full_delta import FullDelta
from fewshot.endtoend.methods.kadaptation import KAdaptation
from fewshot.endtoend.methods.krona import KronA
from fewshot.endtoend.methods.repadapter import RepAdapter
from fewshot.endtoend.methods.ssf import SSF
from fewshot.endtoend.parts.peft import PEFTMethod
from fewshot.endtoend.parts.weight_delta import fold
from tests.image_peft import LABELS, NAMES, TEMPLATES, ids, move, with_


@pytest.mark.parametrize(
    "method",
    [
        KronA(factor=4),
        FacT(rank=2),
        RepAdapter(dim=4),
        FullDelta(),
        KAdaptation(factor=4),
        CLIPLoRA(towers="image"),
    ],
    ids=ids,
)
def test_a_position_leaves_the_other_blocks_alone(encoder: Encoder, method: PEFTMethod) -> None:
    parameters = (
        with_(method, position="half-up").attach(Clip.of(encoder), NAMES, TEMPLATES).parameters
    )
    own = {name for name in parameters if not name.startswith("image.")}
    assert all(name.startswith("visual.transformer.resblocks.1.") for name in own)


@pytest.mark.parametrize(
    "method",
    [
        LNTune(),
        BitFit(),
        FullFineTuning(last=1),
        FullDelta(matrices="q,k,v,o"),
        KronA(factor=4),
        KAdaptation(factor=4, dropout=0.0),
        FacT(matrices="q,k,v,o", rank=2, dropout=0.0),
        SSF(),
        CLIPLoRA(towers="image", dropout=0.0),
    ],
    ids=ids,
)
def test_on_a_resnet_what_has_a_place_works(resnet: Encoder, method: PEFTMethod) -> None:
    clip = Clip.of(resnet)
    learner: Any = method.attach(clip, NAMES, TEMPLATES)
    stock: Any = resnet.model
    image = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            learner.images(image), stock.encode_image(image), rtol=1e-4, atol=1e-4
        )
    move(learner.parameters)
    learner.loss(learner.images(image), LABELS)[0].backward()
    assert all(p.grad is not None for p in learner.parameters.values())
    with torch.no_grad():
        images = learner.images(image)
        fold(clip.model)
        torch.testing.assert_close(clip.model.encode_image(image), images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (RepAdapter(), "repadapter goes between a block's norms and matrices"),
        (DiffFit(), "a ResNet's image tower has no matrix fc2"),
        (FacT(), "a ResNet's image tower has no matrix fc1, fc2"),
    ],
    ids=ids,
)
def test_on_a_resnet_what_has_no_place_is_refused(
    resnet: Encoder, method: PEFTMethod, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        method.attach(Clip.of(resnet), NAMES, TEMPLATES)


def test_a_second_update_on_the_same_model_is_refused(encoder: Encoder) -> None:
    clip = Clip.of(encoder)
    KronA(factor=4).attach(clip, NAMES, TEMPLATES)
    with pytest.raises(UserError, match=r"update goes beside a plain nn.Linear; .* is a KronA"):
        FacT(rank=2).attach(clip, NAMES, TEMPLATES)

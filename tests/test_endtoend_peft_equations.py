from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize

from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.efft import EFFT
from fewshot.endtoend.methods.fact import FacT, FacTLinear
from fewshot.endtoend.methods.kadaptation import KAdaptation
from fewshot.endtoend.methods.krona import KronA
from fewshot.endtoend.methods.repadapter import RepAdapter
from fewshot.endtoend.methods.ssf import SSF
from fewshot.endtoend.parts.peft import PEFTMethod
from tests.image_peft import LABELS, NAMES, TEMPLATES, ids, move, pixels


def materialized(
    model: nn.Module, method: PEFTMethod, parts: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every weight and bias that the technique changes, written out from the parts."""
    weights: dict[str, Tensor] = {}

    def of(path: str, letter: str) -> Tensor:
        return parts[f"{path}.{letter}"]

    for path, module in model.named_modules():
        if not path.startswith("visual."):
            continue
        in_block, linear = "resblocks" in path, isinstance(module, nn.Linear)
        leaf = path.rpartition(".")[2]
        weight: Any = getattr(module, "weight", None)
        bias: Any = getattr(module, "bias", None)
        if isinstance(method, KronA) and leaf in ("q_proj", "v_proj"):
            update = torch.kron(of(path, "A"), of(path, "B"))
            weights[f"{path}.weight"] = weight + method.scale * update
        elif isinstance(method, KAdaptation) and leaf in ("q_proj", "v_proj"):
            update = torch.zeros_like(weight)
            for p, q, u, v in zip(
                parts["image.P"], parts["image.Q"], of(path, "U"), of(path, "V"), strict=True
            ):
                update = update + torch.kron(torch.outer(p, q), torch.outer(u, v))
            weights[f"{path}.weight"] = weight + method.scale * update
            weights[f"{path}.bias"] = bias + of(path, "b")
        elif isinstance(method, FacT) and linear and in_block:
            rows, columns = (n // 64 for n in weight.shape)
            core = of(path, "S").view(rows, 2, columns, 2)
            weights[f"{path}.weight"] = weight + method.scale * torch.cat(
                [
                    torch.cat(
                        [
                            parts["image.V"] @ core[m, :, n] @ parts["image.U"]
                            for n in range(columns)
                        ],
                        dim=1,
                    )
                    for m in range(rows)
                ]
            )
        elif isinstance(method, EFFT) and linear and in_block:
            attention = ("q_proj", "k_proj", "v_proj", "out_proj")
            group, kinds = ("attn", attention) if leaf in attention else ("mlp", ("c_fc", "c_proj"))
            U, C, V = (parts[f"image.{group}_{name}"] for name in "UCV")
            product = U @ C[kinds.index(leaf)] @ V
            update = product if leaf == "c_proj" else product.T
            weights[f"{path}.weight"] = weight + method.scale * update
        elif isinstance(method, SSF) and weight is not None and leaf != "":
            gamma, beta = of(path, "gamma"), of(path, "beta")
            weights[f"{path}.weight"] = (gamma * weight.movedim(0, -1)).movedim(-1, 0)
            if bias is not None:
                weights[f"{path}.bias"] = gamma * bias + beta
        elif (
            isinstance(method, RepAdapter)
            and linear
            and leaf in ("q_proj", "k_proj", "v_proj", "c_fc")
        ):
            norm = path.rpartition(".")[0].rpartition(".")[0] + (
                ".ln_2" if leaf == "c_fc" else ".ln_1"
            )
            up = torch.block_diag(*of(norm, "B"))  # type: ignore[no-untyped-call]
            matrix = torch.eye(64) + method.scale * up @ of(norm, "A")
            shift = method.scale * (up @ of(norm, "a") + of(norm, "b"))
            weights[f"{path}.weight"] = weight @ matrix
            weights[f"{path}.bias"] = bias + weight @ shift
    return weights


@pytest.mark.parametrize(
    "method",
    [
        KronA(factor=4, scale=2.0),
        KAdaptation(terms=3, factor=4, scale=50.0, dropout=0.0),
        FacT(rank=2, scale=3.0, dropout=0.0),
        EFFT(rank=2, scale=3.0, dropout=0.0),
        SSF(),
        RepAdapter(dim=4, scale=2.0, dropout=0.0),
    ],
    ids=ids,
)
def test_loss_and_gradients_are_those_of_the_updated_weights_written_out(
    encoder: Encoder, method: PEFTMethod
) -> None:
    learner: Any = method.attach(Clip.of(encoder), NAMES, TEMPLATES)
    move(learner.parameters)
    if isinstance(method, SSF):  # the stock convolution has no bias to write its offset to
        with torch.no_grad():
            learner.parameters["visual.conv1.beta"].zero_()
    theirs = {k: p.detach().clone().requires_grad_() for k, p in learner.parameters.items()}
    loss, logits = learner.loss(learner.images(pixels()), LABELS)
    loss.backward()
    visual: Any = Clip.of(encoder).model
    changed = {
        name.removeprefix("visual."): weight
        for name, weight in materialized(visual, method, theirs).items()
    }
    features = functional_call(visual.visual, changed, (pixels(),))
    text = normalize(learner.text(), dim=-1)
    expected = learner.logit_scale * normalize(features, dim=-1) @ text.T
    naive = cross_entropy(expected, LABELS)
    naive.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-5)
    for name, parameter in learner.parameters.items():
        if name != "visual.conv1.beta":
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


def test_fact_tk_mixes_every_inner_factor_from_a_column_of_its_own(encoder: Encoder) -> None:
    clip = Clip.of(encoder)
    learner = FacT(rank=2, tucker=True).attach(clip, NAMES, TEMPLATES)
    slots = [
        list(range(module.slots.start, module.slots.stop))
        for module in clip.model.modules()
        if isinstance(module, FacTLinear)
    ]
    assert [len(columns) for columns in slots] == [1, 1, 1, 1, 4, 4] * 2
    every = sorted(column for columns in slots for column in columns)
    assert every == list(range(learner.parameters["image.P"].shape[1]))

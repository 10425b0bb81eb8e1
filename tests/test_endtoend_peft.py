from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.attention import fuse, unfuse
from fewshot.endtoend.checkpoint import State
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.loss_trend import LossTrend
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.difffit import DiffFit
from fewshot.endtoend.methods.efft import EFFT
from fewshot.endtoend.methods.fact import FacT, FacTLinear
from fewshot.endtoend.methods.fine_tuning import BitFit, FullFineTuning, LNTune
from fewshot.endtoend.methods.full_delta import FullDelta
from fewshot.endtoend.methods.kadaptation import KAdaptation
from fewshot.endtoend.methods.krona import KronA
from fewshot.endtoend.methods.live_linear_probe import LiveLinearProbe
from fewshot.endtoend.methods.repadapter import RepAdapter
from fewshot.endtoend.methods.ssf import SSF
from fewshot.endtoend.parts.peft import PEFTMethod
from fewshot.endtoend.parts.weight_delta import fold
from fewshot.endtoend.train import train

NAMES = ["cat", "long_haired dog", "zebra"]
TEMPLATES = ["{} texture.", "other {}"]
LABELS = torch.tensor([0, 1, 2, 1])
SMALL: list[PEFTMethod] = [  # text 8 and image 64 wide, as the random models are
    LNTune(),
    BitFit(),
    DiffFit(),
    FullFineTuning(),
    FullDelta(),
    KronA(factor=4),
    KAdaptation(terms=3, factor=4, scale=50.0, dropout=0.0),
    FacT(rank=2, dropout=0.0),
    FacT(rank=2, dropout=0.0, tucker=True),
    EFFT(rank=2, dropout=0.0),
    SSF(),
    RepAdapter(dim=4, dropout=0.0),
    CLIPLoRA(template="", matrices="q,v,o,fc1,fc2", dropout=0.0),
]


def ids(value: object) -> str | None:
    if not isinstance(value, PEFTMethod):
        return None
    return value.name + ("-tk" if getattr(value, "tucker", False) else "")


def with_(method: PEFTMethod, **values: Any) -> Any:
    return type(method)(**{**vars(method), **values})


def pixels() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def move(parameters: Mapping[str, nn.Parameter]) -> None:
    """All that is trained off its start, so that it does something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("method", SMALL, ids=ids)
@pytest.mark.parametrize("towers", ["image", "both"])
def test_before_training_it_is_zero_shot_clip(
    encoder: Encoder, method: PEFTMethod, towers: str
) -> None:
    learner: Any = with_(method, towers=towers).attach(Clip.of(encoder), NAMES, TEMPLATES)
    stock: Any = encoder.model
    with torch.no_grad():
        image = stock.encode_image(pixels())
        torch.testing.assert_close(learner.images(pixels()), image, rtol=1e-5, atol=2e-6)
        text = torch.zeros(3, 16)
        mean = towers == "image" and not isinstance(method, CLIPLoRA)  # which has one prompt
        for template in TEMPLATES if mean else TEMPLATES[:1]:
            tokens = encoder.tokenizer([template.format(n.replace("_", " ")) for n in NAMES])
            text = text + normalize(stock.encode_text(tokens), dim=-1)
        torch.testing.assert_close(
            normalize(learner.text(), dim=-1), normalize(text, dim=-1), rtol=1e-5, atol=2e-6
        )


def test_ssf_with_noise_does_not_start_from_clip(encoder: Encoder) -> None:
    learner: Any = SSF(noise=0.02).attach(Clip.of(encoder), NAMES, TEMPLATES)
    with torch.no_grad():
        stock: Any = encoder.model
        assert not torch.allclose(learner.images(pixels()), stock.encode_image(pixels()), atol=1e-3)


@pytest.mark.parametrize("method", SMALL, ids=ids)
@pytest.mark.parametrize("towers", ["image", "both", "text"])
def test_what_is_declared_gets_gradients_and_nothing_else(
    encoder: Encoder, method: PEFTMethod, towers: str
) -> None:
    clip = Clip.of(encoder)
    learner = with_(method, towers=towers).attach(clip, NAMES, TEMPLATES)
    assert (learner.images is None) == (towers == "text")
    move(learner.parameters)
    features = learner.images(pixels()) if learner.images else torch.randn(4, 16)
    learner.loss(features, LABELS)[0].backward()
    declared = {id(parameter) for parameter in learner.parameters.values()}
    for name, parameter in clip.model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in declared), name
    # A key's bias adds the same to every logit of its query, which softmax does not see.
    none = {n for n, p in learner.parameters.items() if not p.grad.abs().sum() > 0}
    assert all("k_proj" in name for name in none)
    assert len(declared) == len(learner.parameters)


@pytest.mark.parametrize("method", SMALL, ids=ids)
def test_training_moves_what_is_saved_and_nothing_else(
    encoder: Encoder, method: PEFTMethod, tmp_path: Path
) -> None:
    def built() -> Any:
        clip = Clip.of(encoder)
        short = with_(method, towers="both", lr=1e-3, iterations_per_shot=3)
        learner = short.attach(clip, NAMES, TEMPLATES)
        return clip, learner, short.plan(1, 4), short.optimizer(learner)

    clip, learner, plan, optimizer = built()
    before = {name: p.detach().clone() for name, p in clip.model.named_parameters()}
    path = tmp_path / "checkpoint"
    train(
        learner, clip, plan, optimizer, lambda rows, epoch: pixels()[rows], LABELS,
        seed=1, checkpoint=path,
    )  # fmt: skip
    tuned = {id(parameter) for parameter in learner.parameters.values()}
    for name, parameter in clip.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in tuned), name
    fresh, again, _, anew = built()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    State(again, anew, scaler, LossTrend(plan.iterations)).load(path, "")
    with torch.no_grad():
        assert torch.equal(again.images(pixels()), learner.images(pixels()))
        assert torch.equal(again.text(), learner.text())
    assert fresh is not clip


@pytest.mark.parametrize("method", SMALL, ids=ids)
def test_folded_it_is_a_stock_model_of_the_same_function(
    encoder: Encoder, method: PEFTMethod
) -> None:
    clip = Clip.of(encoder)
    learner: Any = with_(method, towers="both").attach(clip, NAMES, TEMPLATES)
    move(learner.parameters)
    tokens = encoder.tokenizer([TEMPLATES[0].format(n.replace("_", " ")) for n in NAMES])
    stock: Any = encoder.model
    with torch.no_grad():
        images, text = learner.images(pixels()), learner.text()
        assert not torch.allclose(images, stock.encode_image(pixels()), atol=1e-3)
        fold(clip.model)
        fuse(clip.model)
        torch.testing.assert_close(clip.model.encode_image(pixels()), images, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(clip.model.encode_text(tokens), text, rtol=1e-4, atol=1e-4)
    keys = set(clip.model.state_dict())
    assert keys - {n for n in keys if n.endswith("conv1.bias")} == set(stock.state_dict())


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


@pytest.mark.parametrize("method", SMALL, ids=ids)
def test_in_half_precision_it_computes_about_the_same(encoder: Encoder, method: PEFTMethod) -> None:
    learner: Any = with_(method, towers="both").attach(Clip.of(encoder), NAMES, TEMPLATES)
    move(learner.parameters)
    with torch.no_grad():
        logits = learner.logits(learner.images(pixels()))
    with torch.autocast("cpu", torch.bfloat16):
        loss, near = learner.loss(learner.images(pixels()), LABELS)
    torch.testing.assert_close(near, logits, rtol=0.05, atol=1.0)
    loss.backward()
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in learner.parameters.values())


VIT_B_16 = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 1}


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (LNTune(), 39_936),
        (BitFit(), 102_912),
        (DiffFit(), 102_912 + 26 * 768 + 24),  # biases, the norms' scales, gains
        (FullFineTuning(), 86_192_640),
        (FullFineTuning(last=12), 86_192_640 - 3 * 768 * 256 - 198 * 768 - 2 * 768),
        (KronA(), 24 * 1_600),
        (KAdaptation(), 2 * 32 * 32 + 24 * (2 * 32 * 24 + 768)),
        (FacT(), 61_440),
        (EFFT(), 87_552),
        (FacT(tucker=True), 30_976),
        (SSF(), 205_824 + 2 * 768),  # the published one has no ln_pre
        (RepAdapter(), 239_808),
        (CLIPLoRA(), 184_320 - 11 * 6_144),  # the text tower here has one block of 12
        (LNTune(towers="both"), 39_936 + 3 * 2 * 512),
        (KronA(towers="both"), 24 * 1_600 + 2 * (32 * 32 + 16 * 16)),
    ],
)
def test_as_many_parameters_as_published_on_a_vit_b_16(method: PEFTMethod, count: int) -> None:
    with torch.device("meta"):
        model = open_clip.CLIP(512, VIT_B_16, TEXT)
    unfuse(model)
    model.requires_grad_(False)
    clip: Any = SimpleNamespace(model=model)
    parameters, _ = method.insert(clip)
    assert sum(parameter.numel() for parameter in parameters.values()) == count


def test_the_head_can_be_trained_beside(encoder: Encoder) -> None:
    learner: Any = LNTune(head="trained").attach(Clip.of(encoder), NAMES, TEMPLATES)
    learner.loss(learner.images(pixels()), LABELS)[0].backward()
    assert learner.parameters["head"].shape == (3, 16)
    assert all(p.grad is not None for p in learner.parameters.values())


def test_a_linear_probe_trains_the_head_alone_on_features(encoder: Encoder) -> None:
    learner: Any = LiveLinearProbe().attach(Clip.of(encoder), NAMES, TEMPLATES)
    assert set(learner.parameters) == {"head"}
    assert learner.images is None
    features = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    learner.loss(features, LABELS)[0].backward()
    head = learner.parameters["head"].detach().clone().requires_grad_()
    logits = learner.logit_scale * normalize(features, dim=1) @ normalize(head, dim=1).T
    cross_entropy(logits, LABELS).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(learner.parameters["head"].grad, head.grad)


@pytest.mark.parametrize(
    "method", [KAdaptation(factor=4), FacT(), EFFT(), RepAdapter(), CLIPLoRA()], ids=ids
)
def test_dropout_acts_in_training_alone(encoder: Encoder, method: PEFTMethod) -> None:
    learner: Any = with_(method, towers="both", dropout=0.5).attach(
        Clip.of(encoder), NAMES, TEMPLATES
    )
    move(learner.parameters)
    assert all(isinstance(module, nn.Dropout) for module in learner.modules)
    with torch.no_grad():
        images, text = learner.images(pixels()), learner.text()
        assert torch.equal(learner.images(pixels()), images)
        for module in learner.modules:
            module.train()
        assert not torch.allclose(learner.images(pixels()), images)
        assert not torch.allclose(learner.text(), text)


@pytest.mark.parametrize(
    "method", [KronA(factor=4), FacT(), EFFT(), RepAdapter(dim=4), CLIPLoRA()], ids=ids
)
def test_the_seed_draws_the_factors(encoder: Encoder, method: PEFTMethod) -> None:
    one, same, other = (
        with_(method, seed=seed).attach(Clip.of(encoder), NAMES, TEMPLATES).parameters
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


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


@pytest.mark.parametrize(
    ("technique", "settings", "message"),
    [
        (LiveLinearProbe, {"head": "frozen"}, "head must be trained"),
        (KronA, {"factor": 0}, "factor must be a whole number, 1 or more; got 0"),
        (KAdaptation, {"terms": 0}, "terms must be a whole number, 1 or more; got 0"),
        (FacT, {"rank": 0}, "rank must be a whole number, 1 or more; got 0"),
        (CLIPLoRA, {"rank": 0}, "rank must be a whole number, 1 or more; got 0"),
        (CLIPLoRA, {"dropout": 1.0}, r"dropout must be 0 or more and less than 1; got 1.0"),
        (FacT, {"dropout": 1.0}, r"dropout must be 0 or more and less than 1; got 1.0"),
        (EFFT, {"dropout": 1.0}, r"dropout must be 0 or more and less than 1; got 1.0"),
        (EFFT, {"rank": 0}, "rank must be a whole number, 1 or more; got 0"),
        (SSF, {"noise": -1.0}, "noise must be 0 or more; got -1.0"),
        (RepAdapter, {"dim": 0}, "dim must be a whole number, 1 or more; got 0"),
        (RepAdapter, {"position": "top"}, "unknown position 'top'"),
    ],
)
def test_what_cannot_be_is_refused(
    technique: type[PEFTMethod], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        technique(**settings)


def test_a_second_update_on_the_same_model_is_refused(encoder: Encoder) -> None:
    clip = Clip.of(encoder)
    KronA(factor=4).attach(clip, NAMES, TEMPLATES)
    with pytest.raises(UserError, match=r"update goes beside a plain nn.Linear; .* is a KronA"):
        FacT(rank=2).attach(clip, NAMES, TEMPLATES)

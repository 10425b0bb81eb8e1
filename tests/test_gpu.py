"""The same numbers on a GPU as on the CPU in float32, to the bounds of each precision.

Bounds are five to ten times what the precision alone did on a CPU: losses of the first steps moved
by 0.004 in bf16 and 0.0005 in fp16, features by 0.0017 and 0.0002 of their norm.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from benchmarks import gpu as benchmark
from benchmarks import gpu_training
from cache.datasets.resolving import find, resolve_folder
from cache.datasets.source import Source
from cache.errors import UserError
from cache.extract import extract
from cache.identity import Recipe
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.prompts import prompt_sets
from cache.store import FeatureStore
from fewshot import METHODS
from fewshot.endtoend.checkpoint import State
from fewshot.endtoend.clip import Clip, EndToEnd, Learner
from fewshot.endtoend.loss_scale import LossScale
from fewshot.endtoend.loss_trend import LossTrend
from fewshot.endtoend.methods.adaptformer import AdaptFormer
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.train import train
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.training import cosine_by_step
from tests.toys import task

TRAINED: dict[str, EndToEnd] = {
    "clip-lora": CLIPLoRA(dropout=0.0, lr=2e-3),
    "coop": CoOp(n_ctx=4, lr=0.02),
    "adaptformer": AdaptFormer(dropout=0.0),
}
LOSS_MOVES = {"fp32": 2e-4, "fp16": 5e-3, "bf16": 2e-2}
FEATURES_MOVE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.5e-2}  # of their norm
ON_GPU = [pytest.param("cuda", p, marks=pytest.mark.gpu) for p in LOSS_MOVES]
FIRST = 5


def require(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")


@functools.cache
def tiny(device: str = "cpu", precision: str = "fp32") -> Encoder:
    return load("tiny", device=device, precision=precision)


@functools.cache
def digits() -> tuple[Source, Tensor, Tensor]:
    """The dataset, pixels (40, 3, 32, 32) of four images per digit, and their labels."""
    source = find("digits")
    train_split = source.splits["train"]
    items = [[i for i in train_split if i.label == c][k] for k in range(4) for c in range(10)]
    pixels = [tiny().preprocess.center(source.read(item.path)) for item in items]
    return source, torch.stack(pixels), torch.tensor([item.label for item in items])


class Run:
    """A training on the digits, all 40 in every step."""

    def __init__(self, method: EndToEnd, encoder: Encoder, steps: int) -> None:
        self.source, pixels, self.labels = digits()
        self.clip = Clip.of(encoder)
        self.learner = method.attach(self.clip, self.source.classnames, self.source.templates)
        self.given = pixels if self.learner.images else tiny().encode_images(pixels)
        rate = float(getattr(method, "lr"))  # noqa: B009  # each method declares its own
        self.plan = TrainingPlan(steps, len(self.labels), cosine_by_step(rate))
        self.optimizer = method.optimizer(self.learner)
        self.losses: list[float] = []
        self.skipped = 0

    def __call__(self, checkpoint: Path | None = None, stop: int = 0) -> "Run":
        def watch(step: int, loss: float, accuracy: float, rate: float) -> None:
            self.losses.append(loss)
            if step == stop:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            self.skipped = train(
                self.learner, self.clip, self.plan, self.optimizer,
                lambda rows, epoch: self.given[rows], self.labels,
                seed=1, checkpoint=checkpoint, every=0, watch=watch,
            ).skipped  # fmt: skip
        return self


@functools.cache
def losses_on_the_cpu(name: str) -> list[float]:
    """Of the first steps, in float32."""
    return Run(TRAINED[name], tiny(), FIRST)().losses


def moved(features: Tensor, exact: Tensor) -> float:
    return float(((features - exact).abs() / exact.norm(dim=1, keepdim=True)).max())


@pytest.mark.parametrize(("device", "precision"), ON_GPU)
def test_features_are_those_of_the_cpu(device: str, precision: str) -> None:
    require(device)
    source, pixels, _ = digits()
    encoder, exactly = tiny(device, precision), tiny()
    images = encoder.encode_images(pixels)
    exact = exactly.encode_images(pixels)
    assert images.isfinite().all()
    assert images.dtype == torch.float32
    assert moved(images, exact) < FEATURES_MOVE[precision]
    assert cosine_similarity(images, exact).min() > 1 - 10 * FEATURES_MOVE[precision] ** 2 - 1e-6
    prompts = [source.templates[0].format(name) for name in source.classnames]
    text, exact_text = encoder.encode_text(prompts), exactly.encode_text(prompts)
    assert moved(text, exact_text) < FEATURES_MOVE[precision]


@pytest.mark.gpu
def test_crops_are_standardized_to_the_same_bits_on_the_gpu() -> None:
    require("cuda")
    crops = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    preprocess = replace(tiny().preprocess, mean=(0.48, 0.45, 0.40), std=(0.26, 0.25, 0.27))
    on_gpu = preprocess.standardize(crops.to("cuda"))
    assert torch.equal(on_gpu.cpu(), preprocess.standardize(crops))


@pytest.mark.gpu
def test_float32_convolutions_are_not_rounded_to_tf32(random_resnet: Path) -> None:
    """A ResNet's are all of its image tower; TF32 moves its features by 1e-3."""
    require("cuda")
    on_cpu = load(f"local-dir:{random_resnet}", device="cpu")
    on_gpu = load(f"local-dir:{random_resnet}", device="cuda", precision="fp32")
    pixels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert moved(on_gpu.encode_images(pixels), on_cpu.encode_images(pixels)) < 2e-5


@pytest.mark.gpu
@pytest.mark.parametrize("precision", LOSS_MOVES)
def test_a_store_made_again_on_the_gpu_has_the_same_bytes(
    draw_photos: Callable[..., Path],
    tmp_path: Path,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require("cuda")
    monkeypatch.setattr("cache.extraction.new_images.ROWS", 16)  # one shard starts no process
    source = resolve_folder(draw_photos(40))
    recipe = Recipe(prompt_sets(source.classnames, source.templates), views=2)
    stores = [tmp_path / name / "store.h5" for name in ("one", "again", "parts")]
    for store, engine in zip(stores, ("serial", "serial", "process"), strict=True):
        if engine == "serial" or precision == "fp16":
            extract(source, tiny("cuda", precision), recipe, store, engine=engine, processes=2)
    made = [store.read_bytes() for store in stores if store.exists()]
    assert len(made) == 2 + (precision == "fp16")
    assert len(set(made)) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", TRAINED)
def test_half_precision_on_the_gpu_learns(name: str, precision: str) -> None:
    require("cuda")
    run = Run(TRAINED[name], tiny("cuda", precision), 30)()
    assert all(loss == loss for loss in run.losses)
    assert run.losses[-1] < 0.8 * run.losses[0]
    assert run.skipped <= 10
    assert all(p.dtype == torch.float32 for p in run.learner.parameters.values())
    assert all(p.isfinite().all() for p in run.learner.parameters.values())


@pytest.mark.parametrize(
    ("name", "device", "precision"),
    [
        ("coop", "cpu", "bf16"),
        *(
            pytest.param(name, "cuda", precision, marks=pytest.mark.gpu)
            for name in TRAINED
            for precision in LOSS_MOVES
        ),
    ],
)
def test_the_first_losses_are_those_of_the_cpu(name: str, device: str, precision: str) -> None:
    require(device)
    run = Run(TRAINED[name], tiny(device, precision), FIRST)()
    # A skipped step leaves the parameters, so the losses behind it are those of fewer steps.
    compared = slice(0, 1) if run.skipped else slice(0, FIRST)
    for loss, exact in zip(run.losses[compared], losses_on_the_cpu(name)[compared], strict=True):
        assert abs(loss - exact) < LOSS_MOVES[precision]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", TRAINED)
def test_the_first_gradient_in_bf16_is_that_of_float32(name: str, device: str) -> None:
    """To a tenth of its norm, so that the cosine is above 0.99; a CPU moves it by 0.012."""
    require(device)
    losses, gradients = [], []
    for encoder in (tiny(), tiny(device, "bf16")):
        run = Run(TRAINED[name], encoder, 1)
        given, labels = run.given.to(run.clip.device), run.labels.to(run.clip.device)
        with run.clip.autocast():
            images = run.learner.images
            loss, _ = run.learner.loss(given if images is None else images(given), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        trained = [p.grad for p in run.learner.parameters.values() if p.grad is not None]
        gradients.append(torch.cat([gradient.flatten().cpu() for gradient in trained]))
    exact, rough = gradients
    assert abs(losses[1] - losses[0]) < 1e-2 * losses[0]
    assert not torch.equal(rough, exact)
    assert float((rough - exact).norm()) < 0.1 * float(exact.norm())


def test_a_store_in_bf16_is_near_that_of_float32_and_made_again_it_is_the_same(
    draw_photos: Callable[..., Path], tmp_path: Path
) -> None:
    source = resolve_folder(draw_photos(3))
    recipe = Recipe(prompt_sets(source.classnames, source.templates), views=1)
    paths = [tmp_path / name / "store.h5" for name in ("exact", "rough", "again")]
    for path, precision in zip(paths, ("fp32", "bf16", "bf16"), strict=True):
        extract(source, tiny("cpu", precision), recipe, path, engine="serial")
    assert paths[1].read_bytes() == paths[2].read_bytes()
    exact, rough = (FeatureStore.open(path) for path in paths[:2])
    for split in source.splits:
        here, there = (torch.from_numpy(s.features(split)).float() for s in (rough, exact))
        assert 0 < moved(here, there) < FEATURES_MOVE["bf16"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_step_that_overflows_float16_is_skipped_and_counted(device: str) -> None:
    require(device)
    weight = nn.Parameter(torch.ones(10, 128, device=device))
    gradients = [1e35, 1e29, 1e35, 1e29]  # times a scale of 65,536, the large ones overflow
    seen: list[Tensor] = []

    def text() -> Tensor:
        return weight * 1.0

    def objective(features: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        return (weight - weight.detach()).sum() * gradients[len(seen)]

    def watch(step: int, loss: float, accuracy: float, rate: float) -> None:
        seen.append(weight.detach().clone())

    learner = Learner({"w": weight}, 1.0, text, objective=objective)
    encoder = tiny(device, "fp16")
    features, labels = torch.ones(4, 128), torch.zeros(4, dtype=torch.long)
    skipped = train(
        learner, Clip.of(encoder), TrainingPlan(4, 4, lambda epoch, done: 1e-30),
        torch.optim.SGD([weight]), lambda rows, epoch: features, labels, seed=1, watch=watch,
    ).skipped  # fmt: skip
    assert skipped == 2
    assert torch.equal(seen[0], torch.ones_like(weight))
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp16"), *ON_GPU],
)
def test_a_checkpoint_holds_all_that_a_run_has(device: str, precision: str, tmp_path: Path) -> None:
    require(device)
    path, copy = tmp_path / "c.safetensors", tmp_path / "copy.safetensors"
    Run(TRAINED["coop"], tiny(device, precision), 4)(path, stop=3)
    other = Run(TRAINED["coop"], tiny(device, precision), 4)
    scaler = LossScale(device, enabled=precision == "fp16")
    state = State(other.learner, other.optimizer, scaler, LossTrend(4))
    assert state.load(path, "") == 2
    state.save(copy, "", 2)
    assert copy.read_bytes() == path.read_bytes()
    assert all(p.device.type == device for p in other.learner.parameters.values())
    resumed = Run(TRAINED["coop"], tiny(device, precision), 4)(path)
    plain = Run(TRAINED["coop"], tiny(device, precision), 4)()
    assert len(resumed.losses) == 2
    assert resumed.skipped == plain.skipped
    torch.testing.assert_close(resumed.losses, plain.losses[2:], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_saving_memory_saves_it_and_changes_no_gradient(tmp_path: Path) -> None:
    require("cuda")
    vision = {"image_size": 64, "layers": 6, "width": 256, "patch_size": 8}
    name = benchmark.write_model(tmp_path, vision, benchmark.SMALL_TEXT, 64)
    encoder = load(name, device="cuda", precision="fp32")
    cuda = encoder.device
    pixels, labels = torch.randn(64, 3, 64, 64, device=cuda), torch.arange(64, device=cuda) % 2
    peaks, gradients = [], []
    for saving in (False, True):
        clip = Clip.of(encoder)
        learner: Any = AdaptFormer(dropout=0.0).attach(clip, ["cat", "dog"], ["a {}."])
        if saving:
            clip.save_memory()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        learner.loss(learner.images(pixels), labels)[0].backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        gradients.append([p.grad for p in learner.parameters.values()])
        del clip, learner
    assert peaks[1] < 0.6 * peaks[0]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_out_of_the_gpus_memory_is_one_line_and_the_checkpoint_stays(tmp_path: Path) -> None:
    require("cuda")
    path = tmp_path / "c.safetensors"
    run = Run(TRAINED["coop"], tiny("cuda", "fp32"), 3)
    text = run.learner.text

    def greedy() -> Tensor:
        if len(run.losses) == 2:
            torch.empty(2**50, device="cuda")
        return text()

    run.learner.text = greedy
    with pytest.raises(UserError, match=r"the GPU is out of memory: 4194304.0 GiB more") as caught:
        run(path)
    assert "--save-memory" in str(caught.value)
    assert path.exists()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ridge", "gda", "tip-adapter-f"])
def test_methods_on_features_leave_the_gpu_alone(name: str) -> None:
    require("cuda")
    torch.empty(1, device="cuda")
    support, text, queries = task(3)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    METHODS[name]().fit(support, text).logits(queries)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_the_benchmark_runs_on_a_cpu_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_training, "STEPS", 1)
    small = ["--images", "2", "--batch-size", "1", "--classes", "2", "--processes", "0"]
    benchmark.main(["--device", "cpu", "--tiny", *small])
    said = capsys.readouterr().out
    assert "extraction" in said
    assert "coop, 2 classes, ours: steps/s" in said
    differences = [line.split()[-3] for line in said.splitlines() if "losses differ" in line]
    assert len(differences) == 2
    assert all(float(in_float32) < 1e-4 for in_float32 in differences)


def test_without_a_gpu_the_benchmark_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    benchmark.main([])
    assert "torch sees no CUDA device here; --device cpu --tiny" in capsys.readouterr().out

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.images.decode import read_rgb
from cache.images.preprocessing import Preprocess
from cache.models.encoder import Encoder
from cache.models.loading import load
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.classifiers import take_apart
from fewshot.adapters.export.exporting import export
from fewshot.adapters.export.onnx_file import check, how_to_run, require_onnx, write_graph
from fewshot.adapters.export.onnx_graph import OnnxGraph, calibration, formula, graph_of
from fewshot.adapters.opened_adapter import with_encoder
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.label_rule import LabelRule
from fewshot.methods import METHODS
from fewshot.model_selection.calibration import Calibration
from tests.modern_towers import coca
from tests.toy_adapters import NAMES, fitted_adapter, fitted_classifier, trained_adapter

Reader: Any = pytest.importorskip("fewshot_predict.reader").Reader
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ONE_BY_ONE = [name for name, method in METHODS.items() if not method.transductive]
OF_EVERY_KIND: list[tuple[str, dict[str, Any]]] = [
    ("gda", {}), ("tip-adapter", {}), ("ape-t", {}), ("tip-x", {}), ("proker", {}),
    ("clip-adapter", {}), ("refiner", {}), ("taskres", {"residual": "both"}),
]  # fmt: skip


def pixels(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def run(path: Path, images: Tensor) -> list[Tensor]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(out) for out in session.run(None, {"pixels": images.numpy()})]


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_classifiers_without_blocks_give_the_logits_of_those_with(name: str) -> None:
    classifier = fitted_classifier(name, 16)
    features = torch.randn(7, 16, generator=torch.Generator().manual_seed(4))
    if METHODS[name].unit_norm:
        features = normalize(features)
    expected = classifier.logits(features)
    found = formula(*take_apart(classifier))(features)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_one_file_computes_classifiers_of_every_kind_at_any_batch_size(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CoCoOp's, with prompts of every image's own, among them.

    PyTorch traces the module in one go. Where that fails it tries again by way of the bytecode,
    which takes as long once more.
    """
    ways: list[bool] = []
    trace = torch.export.export

    def noted(*arguments: Any, strict: bool, **options: Any) -> Any:
        ways.append(strict)
        return trace(*arguments, strict=strict, **options)

    monkeypatch.setattr(torch.export, "export", noted)
    classifiers = [fitted_classifier(name, 16, **more) for name, more in OF_EVERY_KIND]
    cocoop = trained_adapter(encoder, "cocoop")
    heads = [*(formula(*take_apart(c)) for c in classifiers), graph_of(cocoop, encoder).head]
    expected = [*(c.logits for c in classifiers), with_encoder(cocoop, encoder).logits]
    graph = OnnxGraph(
        lambda x: normalize(encoder.model.encode_image(x), dim=-1),
        lambda features: torch.cat([head(features) for head in heads], dim=1),
        lambda logits: torch.softmax(logits / 2, dim=1),
    )
    predictor = with_encoder(fitted_adapter(encoder, "gda"), encoder)
    write_graph(graph, predictor, tmp_path / "all.onnx")
    assert ways == [False]
    for n in (1, 3, 6):
        features = normalize(encoder.encode_images(pixels(n)), dim=-1)
        ours = torch.cat([logits(features) for logits in expected], dim=1)
        logits, probabilities = run(tmp_path / "all.onnx", pixels(n))
        torch.testing.assert_close(logits, ours, rtol=1e-4, atol=1e-4 * float(ours.abs().max()))
        torch.testing.assert_close(probabilities, torch.softmax(ours / 2, dim=1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_the_module_of_every_end_to_end_method_predicts_as_its_learner(
    encoder: Encoder, name: str
) -> None:
    adapter = trained_adapter(encoder, name)
    with torch.no_grad():
        logits, probabilities = graph_of(adapter, encoder)(pixels())
    predictor = with_encoder(adapter, encoder)
    features = predictor.features(pixels())
    expected = predictor.logits(features)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        probabilities.double(), predictor.probabilities(features), rtol=1e-3, atol=1e-5
    )


def test_cocoops_prompts_go_through_a_text_tower_with_a_class_token() -> None:
    encoder = coca()
    adapter = trained_adapter(encoder, "cocoop")
    features = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    expected = with_encoder(adapter, encoder).logits(features)
    torch.testing.assert_close(graph_of(adapter, encoder).head(features), expected)


@pytest.fixture(scope="module")
def of_resnet(
    random_resnet: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Encoder, Adapter, Path]:
    """A linear probe, which takes features of any norm, on a ResNet."""
    encoder = load(f"local-dir:{random_resnet}", device="cpu")
    adapter = fitted_adapter(encoder, "linear-probe")
    path = tmp_path_factory.mktemp("adapters") / "probe.safetensors"
    adapter.save(path)
    return encoder, adapter, export(path, "onnx")


def code_of(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found
    return found[1]


def test_the_card_s_code_prints_the_predicted_class(
    of_resnet: tuple[Encoder, Adapter, Path],
    draw_photos: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder, adapter, folder = of_resnet
    photo = draw_photos(1) / "red" / "000.jpg"
    monkeypatch.chdir(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    exec(code_of(card).replace("image.jpg", str(photo)), {})
    predictor = with_encoder(adapter, encoder)
    crop = predictor.preprocess.center(read_rgb(photo, exif=True))[None]
    [expected] = predictor.probabilities(predictor.features(crop))
    name, _, probability = capsys.readouterr().out.strip().rpartition(" ")
    assert name == NAMES[int(expected.argmax())]
    assert float(probability) == pytest.approx(float(expected.max()), abs=1e-4)
    ranked = dict(Reader(folder).classify(photo).ranked)  # by the package without torch
    assert [ranked[name] for name in NAMES] == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_file_tells_what_it_is(of_resnet: tuple[Encoder, Adapter, Path]) -> None:
    encoder, _, folder = of_resnet
    assert folder.name == "probe-onnx"
    about = {p.key: p.value for p in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(about["classes"]) == list(NAMES)
    assert float(about["temperature"]) == 0.8
    assert json.loads(about["preprocessing"])["mean"] == list(encoder.preprocess.mean)
    assert json.loads(about["model"])["weights"] == encoder.identity["weights"]
    assert about["method"] == "linear-probe"
    assert json.loads((folder / "classes.json").read_text(encoding="utf-8")) == list(NAMES)
    assert str(folder.parent) not in json.dumps(about)


def test_labels_of_which_there_may_be_several_have_their_own_probabilities_and_thresholds(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rule = LabelRule((3.0, 0.5, 2.0), (0.1, -0.2, 0.3), (0.5, 0.5, 0.5), 12, 0.8)
    adapter = replace(fitted_adapter(encoder, "ridge"), label_rule=rule)
    predictor = with_encoder(adapter, encoder)
    graph = OnnxGraph(lambda x: x.mean(dim=(2, 3)), lambda x: x, calibration(adapter))
    write_graph(graph, predictor, tmp_path / "model.onnx")
    (tmp_path / "classes.json").write_text(json.dumps(NAMES))
    colors = np.zeros((40, 50, 3), np.uint8) + np.array([250, 10, 200], np.uint8)
    Image.fromarray(colors).save(tmp_path / "image.jpg", quality=100)
    with Image.open(tmp_path / "image.jpg") as image:
        logits = predictor.preprocess.center(image.convert("RGB")).mean(dim=(1, 2))
    expected = torch.sigmoid(
        torch.tensor([3.0, 0.5, 2.0]) * logits + torch.tensor([0.1, -0.2, 0.3])
    )
    answer = Reader(tmp_path).classify(tmp_path / "image.jpg")
    assert dict(answer.ranked) == pytest.approx(
        dict(zip(NAMES, expected.tolist(), strict=True)), abs=1e-5
    )
    labels = {name for name, p in zip(NAMES, expected, strict=True) if p >= 0.5}
    assert len(labels) == 2
    assert {name for name, _ in answer.labels} == labels
    monkeypatch.chdir(tmp_path)
    exec(code_of(how_to_run(predictor.preprocess, exif=True, several=True)), {})
    shown = capsys.readouterr().out.splitlines()
    assert {line.rpartition(" ")[0] for line in shown} == labels


@pytest.mark.parametrize("what", ["logits", "probabilities"])
def test_a_file_that_computes_something_else_is_found_out(
    of_resnet: tuple[Encoder, Adapter, Path], what: str
) -> None:
    encoder, adapter, folder = of_resnet
    check(folder / "model.onnx", with_encoder(adapter, encoder))
    if what == "logits":
        tensors = {k: t * 1.001 for k, t in adapter.tensors.items()}
        other = replace(adapter, tensors=tensors)
    else:
        other = replace(adapter, calibration=Calibration(temperature=0.81))
    with pytest.raises(UserError, match=f"the export's {what} are off by .*, so nothing"):
        check(folder / "model.onnx", with_encoder(other, encoder))


@pytest.mark.parametrize(
    ("mode", "share"),
    [("shortest", 1), ("squash", 1), ("longest", 1), ("shortest", 0.875), ("squash", 0.9)],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(50, 41), (41, 50), (33, 33), (200, 31)])
def test_the_card_s_code_makes_the_model_s_own_pixels(
    tmp_path: Path, mode: str, share: float, interpolation: str, size: tuple[int, int]
) -> None:
    preprocess = Preprocess(32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), interpolation, mode, 7, share)
    draw = np.random.default_rng(0)
    photo = Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8))
    photo.save(tmp_path / "image.png")
    code = code_of(how_to_run(preprocess, exif=True)).split("session =")[0]
    made: dict[str, Any] = {}
    exec(code.replace("image.jpg", str(tmp_path / "image.png")), made)
    x = torch.from_numpy(made["x"].transpose(2, 0, 1))
    torch.testing.assert_close(x, preprocess.center(photo), rtol=0, atol=1e-5)


def test_what_classifies_images_jointly_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    adapter = fitted_adapter(encoder, "transclip")
    with pytest.raises(UserError, match="the logits of an image depend on the images beside it"):
        export(adapter, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name)
    )
    with pytest.raises(UserError, match=r"onnxscript is not here.*pip install 'fewshot-clip\[onnx"):
        require_onnx()


def test_a_model_that_has_no_graph_is_said_in_one_line(
    encoder: Encoder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_graph(x: Tensor) -> Tensor:
        raise NotImplementedError("such towers are unheard of")

    predictor = with_encoder(fitted_adapter(encoder, "gda"), encoder)
    with pytest.raises(UserError, match=r"no ONNX graph of gda on local-dir:.* \(such towers"):
        write_graph(OnnxGraph(no_graph, lambda x: x, lambda x: x), predictor, tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")

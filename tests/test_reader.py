"""The reader of exported folders that needs no torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cache.images.preprocessing import Preprocess
from cli import main
from fewshot.adapters import output
from fewshot.adapters.image_results import Prediction

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
reader: Any = pytest.importorskip("fewshot_predict.reader")
answer_lines: Any = pytest.importorskip("fewshot_predict.answer_lines")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
NAMES = ["ant", "bee", "cat"]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of the mean color, with what an export says of itself."""
    weight = np.arange(9, dtype=np.float32).reshape(3, 3)
    nodes = [
        onnx.helper.make_node("ReduceMean", ["pixels", "axes"], ["color"], keepdims=0),
        onnx.helper.make_node("MatMul", ["color", "weight"], ["logits"]),
        onnx.helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "color",
        [onnx.helper.make_tensor_value_info("pixels", 1, ["batch", 3, 32, 32])],
        [
            onnx.helper.make_tensor_value_info(x, 1, ["batch", 3])
            for x in ("logits", "probabilities")
        ],
        [
            onnx.numpy_helper.from_array(weight, "weight"),
            onnx.numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    how = {**Preprocess(32, MEAN, STD, "bicubic", "shortest").identity(), "exif": True}
    about = {"classes": json.dumps(NAMES), "preprocessing": json.dumps(how)}
    onnx.helper.set_model_props(model, about)
    (tmp_path / "model").mkdir()
    onnx.save(model, tmp_path / "model" / "model.onnx")
    return tmp_path / "model"


def test_classes_are_ranked_by_the_model_s_probabilities(folder: Path, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[274] = 6
    photo(60, 41).save(tmp_path / "a.png", exif=turned)
    upright = photo(60, 41).transpose(Image.Transpose.ROTATE_270)
    color = Preprocess(32, MEAN, STD, "bicubic", "shortest").center(upright).mean(dim=(1, 2))
    expected = torch.softmax(color @ torch.arange(9.0).reshape(3, 3), dim=0)
    ranked = reader.Reader(folder).classify(tmp_path / "a.png").ranked
    assert [name for name, _ in ranked] == [NAMES[k] for k in expected.argsort(descending=True)]
    assert dict(ranked) == pytest.approx(dict(zip(NAMES, expected.tolist(), strict=True)), abs=1e-5)


def test_an_image_may_have_several_labels_or_none(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(60, 41).save(tmp_path / "a.png")
    p = dict(reader.Reader(folder).classify(tmp_path / "a.png").ranked)
    model = onnx.load(folder / "model.onnx")
    for thresholds, labels in (
        ([p["ant"] - 0.01, p["bee"] + 0.01, p["cat"] - 0.01], {"ant", "cat"}),
        ([1.0, 1.0, 1.0], set()),
    ):
        about = model.metadata_props
        onnx.helper.set_model_props(
            model, {x.key: x.value for x in about} | {"thresholds": json.dumps(thresholds)}
        )
        onnx.save(model, folder / "model.onnx")
        command = [str(folder), str(tmp_path / "a.png"), "--top", "1"]
        assert reader.main([*command, "--format", "jsonl"]) == 0
        found = json.loads(capsys.readouterr().out)
        names = [name for name in found["label"].split(";") if name]
        assert (set(names), len(found["classes"])) == (labels, 1)
        expected = pytest.approx([p[name] for name in names], rel=1e-5)  # six digits are printed
        assert found["label_probabilities"] == expected
        assert found["label_probabilities"] == sorted(found["label_probabilities"], reverse=True)
        assert reader.main(command) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in labels)
        assert "bee" not in shown


@pytest.mark.parametrize("form", ["table", "jsonl"])
@pytest.mark.parametrize("top", [1, 2, 9])
@pytest.mark.parametrize("several", [False, True])
def test_lines_are_those_of_predictions_by_an_adapter(form: str, top: int, several: bool) -> None:
    names = ("cat", "\u72ac\u3068cafe\u0301", "cow\x1b[2J")
    answers, predictions = [], []
    for i in range(answer_lines.BLOCK + 3):
        p = (0.9 - i / 40, i / 40, 0.1 / 3)
        order = sorted(range(3), key=lambda k: -p[k])
        ranked = [(names[k], p[k]) for k in order]
        labels = [one for one in ranked if one[1] > 0.1 * i] if several else None
        answers.append((f"{'x' * (i % 9)}{i}.png", answer_lines.Answer(ranked, labels)))
        best, chosen = ranked[:top], labels or []
        predictions.append(
            Prediction(
                answers[-1][0],
                classes=tuple(name for name, _ in best),
                probabilities=tuple(p for _, p in best),
                labels=tuple(name for name, _ in chosen) if several else None,
                label_probabilities=tuple(p for _, p in chosen) if several else None,
            )
        )
    assert not several or any(one.labels == () for one in predictions)
    found = [f"{line}\n" for line in answer_lines.lines(answers, top, form)]
    assert found == list(output.lines(predictions, form))


def test_fewshot_predict_says_the_same_of_an_exported_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(60, 41).save(tmp_path / "a.png")
    for more in ([], ["--format", "jsonl", "--top", "2"]):
        words = [str(folder), str(tmp_path / "a.png"), str(tmp_path / "none.png"), *more]
        assert reader.main(words) == 0
        expected = capsys.readouterr()
        assert main(["predict", *words]) == 0
        assert capsys.readouterr() == expected
        assert "cannot read" in expected.err


def test_fewshot_predict_refuses_what_an_exported_folder_cannot_do(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo(60, 41).save(tmp_path / "a.png")
    words = ["predict", str(folder), str(tmp_path / "a.png")]
    for more, problem in (
        (
            ["--unknown", "--coverage", "0.9"],
            "only an adapter's file takes --unknown and --coverage; give that",
        ),
        (["--format", "csv"], "only an adapter's file takes --format csv"),
        (["--top", "0"], "--top must be at least 1"),
    ):
        assert main([*words, *more]) == 2
        assert problem in capsys.readouterr().err
    assert main(["predict", str(tmp_path), str(tmp_path / "a.png")]) == 2
    assert "no model.onnx in" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "fewshot_predict.reader", None)
    assert main(words) == 2
    assert "pip install ./fewshot_predict" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize(("method", "share"), [("bicubic", 1.0), ("bilinear", 0.875)])
@pytest.mark.parametrize("size", [(57, 41), (40, 93), (200, 2)])
def test_pixels_are_the_model_s_own(
    mode: str, method: str, share: float, size: tuple[int, int]
) -> None:
    if mode == "longest" and (share < 1 or min(size) < 9):
        pytest.skip("open_clip's longest has no larger size, and no slivers")
    ours = Preprocess(32, MEAN, STD, method, mode, fill_color=7, crop_pct=share)
    got = reader.pixels(photo(*size), {"crop_pct": 1.0, **ours.identity(), "exif": True})
    torch.testing.assert_close(torch.from_numpy(got), ours.center(photo(*size)))


def test_the_command_prints_what_it_can_read(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    tmp_path /= "photos"
    (tmp_path / "broken.png").write_bytes(b"no image")
    photo(20, 20).convert("L").save(tmp_path / "gray.png")
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(tmp_path / "deep.png")
    assert reader.main([str(folder), str(tmp_path), "--format", "jsonl", "--top", "2"]) == 0
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    found = json.loads(line)
    assert found["path"].endswith("gray.png")
    assert len(found["classes"]) == len(found["probabilities"]) == 2
    broken, deep = shown.err.splitlines()
    assert "cannot read" in broken
    assert "gray of more than 8 bits" in deep


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("x.png",), "none of the images can be read"),
        (("x.png", "--top", "0"), "--top must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert reader.main([str(folder), *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("form", ["table", "jsonl"])
def test_no_name_moves_the_cursor(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    (tmp_path / "photos").mkdir()
    photo(9, 9).save(tmp_path / "photos" / "a\x1b[2J\n.png")
    (tmp_path / "photos" / "b\r\u202e.png").write_bytes(b"no image")
    (tmp_path / "photos" / "c\udcff.png").write_bytes(b"no image")
    assert reader.main([str(folder), str(tmp_path / "photos"), "--format", form]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1 + (form == "table")  # its header
    assert len(shown.err.splitlines()) == 2
    assert r"b\r\u202e.png" in shown.err
    assert all(c.isprintable() for c in (shown.out + shown.err).replace("\n", ""))
    if form == "jsonl":
        assert json.loads(shown.out)["path"].endswith("a\x1b[2J\n.png")
    assert reader.main([str(tmp_path / "no\x1b[2Jmodel"), "x.png"]) == 2
    assert "no\\x1b[2Jmodel" in capsys.readouterr().err


def test_another_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reader.main([str(tmp_path), "x.png"]) == 2
    assert "`fewshot export ADAPTER --to onnx` writes such a folder" in capsys.readouterr().err
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    assert reader.main([str(tmp_path), "x.png"]) == 2
    assert "is no export of fewshot, or is damaged" in capsys.readouterr().err


def test_it_loads_no_torch_and_nothing_of_fewshot() -> None:
    code = (
        "import sys, fewshot_predict.reader; "
        "print(*{'torch', 'fewshot', 'cache', 'open_clip', 'typer'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.stdout.strip() == ""

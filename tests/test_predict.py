import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cache.errors import UserError
from cache.images.decode import NO_IMAGE
from cache.models.encoder import Encoder
from fewshot import GDA, SupportSet, Text, TransCLIP, ZeroShot
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.classifiers import take_apart
from fewshot.adapters.image_results import Prediction, PredictionForm, Unreadable
from fewshot.adapters.inputs import image_files
from fewshot.adapters.opened_adapter import with_encoder
from fewshot.adapters.predict import classify_images, predict, stream
from fewshot.adapters.predictor import Predictor
from fewshot.classifier import Classifier, LinearClassifier
from fewshot.method import Method
from fewshot.model_selection.calibration import Calibration

CLASSES = ("blue", "green", "red")
TEMPERATURE = 1.7
ASKED = PredictionForm()


@pytest.fixture
def photos(draw_photos: Callable[..., Path]) -> list[str]:
    """60 images, of three classes in turn."""
    files = image_files([str(draw_photos(20))])
    return [files[20 * (i % 3) + i // 3] for i in range(60)]


def unit_features(encoder: Encoder, paths: list[str]) -> Tensor:
    """(M, D), image by image."""
    features = []
    for path in paths:
        with Image.open(path) as image:
            pixels = encoder.preprocess.center(image.convert("RGB"))
        features.append(encoder.model.encode_image(pixels[None])[0].detach())
    return torch.nn.functional.normalize(torch.stack(features), dim=1)


def adapter_of(
    encoder: Encoder, method: Method, classifier: Classifier, names: tuple[str, ...] = CLASSES
) -> Adapter:
    plain, tensors = take_apart(classifier)
    return Adapter(
        method=method.name,
        settings=dataclasses.asdict(method),
        model=dict(encoder.identity),
        preprocessing={**encoder.preprocess.identity(), "exif": True},
        precision="fp32",
        classnames=names,
        prompts=(),
        templates=(),
        training={},
        calibration=Calibration(TEMPERATURE, 30, "cv"),
        classifier=plain,
        tensors=tensors,
    )


def linear(encoder: Encoder, names: tuple[str, ...] = CLASSES) -> Adapter:
    """An adapter whose classes have nothing to do with colors; about gray, it is undecided."""
    rng = torch.Generator().manual_seed(3)
    weight = 15 * torch.randn(3, 16, generator=rng)
    pixels = encoder.preprocess.center(Image.new("RGB", (32, 32), (90, 90, 90)))
    gray = torch.nn.functional.normalize(encoder.encode_images(pixels[None])[0], dim=0)
    return adapter_of(encoder, GDA(), LinearClassifier(weight, -weight @ gray), names)


@pytest.fixture
def predictor(encoder: Encoder) -> Predictor:
    return with_encoder(linear(encoder), encoder)


def expected(adapter: Adapter, features: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(M, C) softmax((x W' + b) / T), in double precision."""
    w, b = (adapter.tensors[name].double().numpy() for name in ("weight", "bias"))
    z = (features.double().numpy() @ w.T + b) / TEMPERATURE
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def test_probabilities_are_the_softmax_of_the_logits_over_the_temperature(
    encoder: Encoder, predictor: Predictor, photos: list[str]
) -> None:
    probabilities = expected(predictor.adapter, unit_features(encoder, photos))
    predicted = predict(predictor, photos, top=3)
    assert [one.path for one in predicted] == photos
    for one, row in zip(predicted, probabilities, strict=True):
        best = np.argsort(-row)
        assert one.classes == tuple(CLASSES[i] for i in best)
        np.testing.assert_allclose(one.probabilities, row[best], atol=1e-5)
        assert one.confidence == one.probabilities[0] == max(one.probabilities)
    assert len({one.label for one in predicted}) > 1


def test_a_fitted_classifier_says_the_colors_of_photos_from_its_file(
    encoder: Encoder, photos: list[str], tmp_path: Path
) -> None:
    labels = torch.arange(9) % 3
    support = SupportSet(unit_features(encoder, photos[:9]), labels, 3)
    text = Text(torch.nn.functional.normalize(torch.randn(3, 16), dim=1))
    classifier = GDA(alpha=5.0, logit_scale=1.0).fit(support, text)
    adapter_of(encoder, GDA(), classifier).save(tmp_path / "colors.safetensors")
    rest = photos[9:]
    predicted = predict(tmp_path / "colors.safetensors", rest, device="cpu")
    assert [one.label for one in predicted] == [Path(path).parent.name for path in rest]
    assert predicted == predict(str(tmp_path / "colors.safetensors"), rest, device="cpu")


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (7, 4), (64, 2), (60, 3), (0, 0)])
def test_neither_batches_nor_threads_change_what_is_said(
    predictor: Predictor, photos: list[str], batch_size: int, workers: int
) -> None:
    ways = predict(predictor, photos, batch_size=batch_size, workers=workers)
    usual = predict(predictor, photos, batch_size=16)
    assert [one.path for one in ways] == photos
    assert [one.classes for one in ways] == [one.classes for one in usual]
    torch.testing.assert_close(
        torch.tensor([one.probabilities for one in ways]),
        torch.tensor([one.probabilities for one in usual]),
    )


def test_fewer_classes_are_the_first_of_all_and_more_than_there_are_is_all(
    predictor: Predictor, photos: list[str]
) -> None:
    every = predict(predictor, photos[:5], top=3)
    assert predict(predictor, photos[:5], top=99) == every
    for one, whole in zip(predict(predictor, photos[:5], top=2), every, strict=True):
        assert one.classes == whole.classes[:2]
        assert one.probabilities == whole.probabilities[:2]
    assert sum(every[0].probabilities) == pytest.approx(1)


def test_equally_probable_classes_come_by_id(encoder: Encoder, photos: list[str]) -> None:
    names = tuple(f"class-{i:02d}" for i in range(40))
    weight = torch.zeros(40, 16)
    bias = torch.zeros(40)
    bias[[7, 30]] = 1.0
    adapter = adapter_of(encoder, GDA(), LinearClassifier(weight, bias), names)
    [one] = predict(with_encoder(adapter, encoder), photos[0], top=40)
    rest = [name for i, name in enumerate(names) if i not in (7, 30)]
    assert list(one.classes) == ["class-07", "class-30", *rest]


def test_two_classes_of_one_name_are_told_apart(encoder: Encoder, photos: list[str]) -> None:
    adapter = linear(encoder, names=("crane", "owl", "crane"))
    [one] = predict(with_encoder(adapter, encoder), photos[0])
    assert sorted(one.classes) == ["crane (class 0)", "crane (class 2)", "owl"]


def test_the_label_is_unknown_below_the_confidence_asked_for(
    predictor: Predictor, photos: list[str]
) -> None:
    sure = predict(predictor, photos)
    middle = float(np.median([one.confidence for one in sure]))
    asked = predict(predictor, photos, min_confidence=middle)
    for one, same in zip(asked, sure, strict=True):
        assert one.label == (same.label if same.confidence >= middle else "unknown")
        assert one.classes == same.classes
    assert 0 < sum(one.label == "unknown" for one in asked) < 60


def test_images_in_memory_and_files_mix(predictor: Predictor, photos: list[str]) -> None:
    with Image.open(photos[1]) as opened:
        mixed = predict(predictor, [photos[0], opened, opened.copy(), Path(photos[0])])
    first, second = predict(predictor, photos[:2])
    assert [one.path for one in mixed] == [photos[0], photos[1], "images[2]", photos[0]]
    for one, same in zip(mixed, (first, second, second, first), strict=True):
        assert one.probabilities == pytest.approx(same.probabilities, abs=1e-5)


def test_images_are_turned_upright_unless_the_adapters_were_not(
    encoder: Encoder, tmp_path: Path
) -> None:
    half = np.zeros((40, 40, 3), np.uint8)
    half[:20] = 255
    image = Image.fromarray(half)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "plain.png")
    Image.fromarray(np.rot90(half, -1)).save(tmp_path / "upright.png")
    adapter = linear(encoder)
    files = [str(tmp_path / f"{name}.png") for name in ("turned", "plain", "upright")]
    known = dict(adapter.preprocessing)
    for preprocessing, same in (({}, 2), (known, 2), ({**known, "exif": False}, 1)):
        asked = dataclasses.replace(adapter, preprocessing=preprocessing)
        predicted = predict(with_encoder(asked, encoder), files)
        turned, *others = [one.probabilities for one in predicted]
        assert turned == pytest.approx(others[same - 1], abs=1e-6)
        assert turned != pytest.approx(others[2 - same], abs=1e-6)


def test_unreadable_images_are_passed_over_in_their_place(
    predictor: Predictor, photos: list[str]
) -> None:
    whole = predict(predictor, photos)
    bad = {3, 4, 5, 20, 59}
    for i in bad:
        Path(photos[i]).write_bytes(Path(photos[i]).read_bytes()[: 20 * i])
    found = list(stream(predictor, photos, batch_size=3))
    assert [one.path for one in found] == photos
    for i, (one, before) in enumerate(zip(found, whole, strict=True)):
        if i in bad:
            assert isinstance(one, Unreadable)
        else:
            assert isinstance(one, Prediction)
            assert one.probabilities == pytest.approx(before.probabilities, abs=1e-5)
    message = rf"^cannot read {re.escape(photos[3])}: .+; leave it out, or use `stream`"
    with pytest.raises(UserError, match=message):
        predict(predictor, photos)


def test_progress_counts_every_image(predictor: Predictor, photos: list[str]) -> None:
    Path(photos[9]).write_bytes(b"")
    seen: list[int] = []
    list(stream(predictor, photos[:25], batch_size=10, advance=seen.append))
    assert seen == [10, 10, 5]


def test_what_is_said_of_an_image_depends_on_all_where_the_method_is_joint(
    encoder: Encoder, photos: list[str]
) -> None:
    features = unit_features(encoder, photos)
    support = SupportSet(features[:6], torch.arange(6) % 3, 3)
    text = Text(torch.nn.functional.normalize(torch.randn(3, 16), dim=1))
    method = TransCLIP(logit_scale=10.0)
    classifier = method.fit(support, text)
    predictor = with_encoder(adapter_of(encoder, method, classifier), encoder)
    assert predictor.jointly
    Path(photos[30]).write_bytes(b"")
    rest = [i for i in range(6, 60) if i != 30]
    logits = classifier.logits(features[rest]).double() / TEMPERATURE
    probabilities = torch.softmax(logits, dim=1)
    found = list(stream(predictor, photos[6:], PredictionForm(top=3), batch_size=7))
    read = [one for one in found if isinstance(one, Prediction)]
    assert [one.path for one in found] == photos[6:]
    assert [one.path for one in read] == [photos[i] for i in rest]
    for one, row in zip(read, probabilities, strict=True):
        values = row.sort(descending=True).values.tolist()
        assert one.probabilities == pytest.approx(values, abs=1e-4)
    [alone] = predict(predictor, photos[50])
    [among] = [one for one in read if one.path == photos[50]]
    assert abs(alone.confidence - among.confidence) > 1e-3


def test_a_model_that_gives_no_numbers_is_told(encoder: Encoder, photos: list[str]) -> None:
    weight = torch.full((3, 16), torch.nan)
    adapter = adapter_of(encoder, GDA(), LinearClassifier(weight), CLASSES)
    with pytest.raises(UserError, match="gave gda no finite numbers; use --precision fp32"):
        predict(with_encoder(adapter, encoder), photos)


def test_what_cannot_be_is_told_before_a_model_is_loaded(
    encoder: Encoder, tmp_path: Path, photos: list[str]
) -> None:
    nowhere = dataclasses.replace(
        linear(encoder), model={**encoder.identity, "name": "local-dir:/nowhere"}
    )
    with pytest.raises(UserError, match=r"nothing matches 'nothing\.jpg'"):
        predict(nowhere, [photos[0], "nothing.jpg"])
    with pytest.raises(UserError, match="top must be at least 1"):
        predict(nowhere, photos, top=0)
    with pytest.raises(UserError, match="min_confidence must be a probability"):
        predict(nowhere, photos, min_confidence=90)
    with pytest.raises(UserError, match="cannot read an adapter from"):
        predict(tmp_path / "absent.safetensors", photos)
    with pytest.raises(UserError, match="no model in /nowhere"):
        predict(nowhere, photos)
    with pytest.raises(UserError, match="top must be at least 1"):
        stream(with_encoder(linear(encoder), encoder), photos, PredictionForm(top=0))


def test_the_text_alone_serves_as_well(encoder: Encoder, photos: list[str]) -> None:
    text = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    method = ZeroShot(logit_scale=7.0)
    adapter = adapter_of(encoder, method, method.fit(None, Text(text)))
    [one] = predict(with_encoder(adapter, encoder), photos[0], top=1)
    z = 7 * unit_features(encoder, photos[:1]) @ text.T / TEMPERATURE
    assert one.confidence == pytest.approx(float(torch.softmax(z, dim=1).max()), abs=1e-5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def saved(encoder: Encoder, tmp_path: Path) -> Path:
    """The file of the linear adapter."""
    path = tmp_path / "adapter.safetensors"
    linear(encoder).save(path)
    return path


def command(
    saved: Path, *images: str, asked: PredictionForm = ASKED, **more: Any
) -> tuple[str, list[str], str]:
    """What is printed, what is said, and the counts in words."""
    out, said = io.StringIO(), list[str]()
    outcome = classify_images(saved, images, asked, out=out, say=said.append, device="cpu", **more)
    return out.getvalue(), said, str(outcome)


def test_the_command_writes_what_python_returns(
    saved: Path, predictor: Predictor, photos: list[str]
) -> None:
    folder = str(Path(photos[0]).parents[1])
    files = sorted(photos)
    sure = sorted(one.confidence for one in predict(predictor, folder))
    asked: dict[str, Any] = {"top": 2, "min_confidence": (sure[19] + sure[20]) / 2}
    predicted = predict(predictor, folder, **asked)
    text, said, counts = command(saved, folder, asked=PredictionForm(**asked), form="csv")
    _, *rows = csv.reader(io.StringIO(text))
    assert [row[0] for row in rows] == files == [one.path for one in predicted]
    assert [row[1] for row in rows] == [one.label for one in predicted]
    assert [float(row[4]) for row in rows] == pytest.approx(
        [one.confidence for one in predicted], rel=1e-5
    )
    assert said == []
    assert counts == "60 images classified, 20 of them unknown"


def test_the_command_reads_names_from_stdin(saved: Path, photos: list[str]) -> None:
    stdin = io.BytesIO("\n".join(photos[5:8]).encode())
    text, _, _ = command(saved, photos[0], "-", photos[0], stdin=stdin, form="jsonl")
    paths = [json.loads(line)["path"] for line in text.splitlines()]
    assert paths == [photos[0], *photos[5:8], photos[0]]


def test_the_command_tells_and_counts_what_it_cannot_read(saved: Path, photos: list[str]) -> None:
    for path in photos[:2]:
        Path(path).write_text("hello")
    text, said, counts = command(saved, *photos, form="jsonl")
    reason = NO_IMAGE
    assert said == [f"cannot read {path}: {reason}" for path in photos[:2]]
    assert counts == "58 images classified, 2 unreadable and skipped"
    assert json.loads(text.splitlines()[0]) == {"path": photos[0], "error": reason}
    assert len(text.splitlines()) == 60
    assert len(command(saved, *photos, form="csv")[0].splitlines()) == 59


@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_nothing_to_read_is_an_error(saved: Path, photos: list[str], form: str) -> None:
    for path in photos[:3]:
        Path(path).write_bytes(b"")
    with pytest.raises(UserError, match=r"^none of the 3 images can be read; give others$"):
        command(saved, *photos[:3], form=form)


def test_what_was_written_stays_when_it_is_interrupted(saved: Path, photos: list[str]) -> None:
    class Stopping(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed = len(self.getvalue().splitlines())
            if self.flushed == 11:
                raise KeyboardInterrupt

    out = Stopping()
    with pytest.raises(KeyboardInterrupt):
        classify_images(
            saved, photos, ASKED, out=out, say=print, form="csv", device="cpu", batch_size=4
        )
    assert len(out.getvalue().splitlines()) == out.flushed == 11


def test_a_table_is_as_wide_as_the_terminal(
    saved: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    out = Terminal()
    classify_images(saved, photos, ASKED, out=out, say=print, device="cpu")
    rows = out.getvalue().splitlines()
    assert len(rows) == 61
    assert all(len(row) <= 50 for row in rows)
    free, _, _ = command(saved, *photos)
    assert photos[-1] in free


def test_progress_is_on_stderr_alone(
    saved: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command(saved, *photos)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "images 60/60" in captured.err


def test_the_command_refuses_before_it_loads_anything(saved: Path, photos: list[str]) -> None:
    with pytest.raises(UserError, match="unknown format 'xml'"):
        command(saved.with_name("absent"), *photos, form="xml")
    with pytest.raises(UserError, match="nothing matches 'x'"):
        command(saved, "x", model="local-dir:/nowhere")
    with pytest.raises(UserError, match="no model in /nowhere"):
        command(saved, *photos, model="local-dir:/nowhere")

import contextlib
import http.client
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.classifiers import put_together
from fewshot.adapters.fitted_adapter import fit_and_save
from fewshot.adapters.image_results import PredictionForm
from fewshot.adapters.output import lines
from fewshot.adapters.predict import stream
from fewshot.adapters.predictor import Predictor
from fewshot.label_rule import LabelRule
from fewshot.serving import web_server
from fewshot.serving.connection import BODY
from fewshot.serving.messages import as_json
from fewshot.serving.openapi import PARAMETERS
from fewshot.serving.prediction_service import PredictionService
from fewshot.serving.serve import answering
from fewshot.serving.uploads import PARTS
from fewshot.serving.web_server import WebServer
from tests.shrunk import shrunk
from tests.small_stores import DIM, write_store

SIDE = 4
ENDING = "--mark--\r\n"


def encode(pixels: Tensor) -> Tensor:
    """(B, D) features of (B, 3, H, W) pixels."""
    mixing = torch.randn(3 * SIDE * SIDE, DIM, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(pixels.flatten(1) @ mixing)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    folder = tmp_path_factory.mktemp("served")
    store = FeatureStore.open(write_store(folder, "pets"))
    return fit_and_save(store, "gda", folder / "a.safetensors", shots="all", tune="none")[0]


def predictor(adapter: Adapter, features: Callable[[Tensor], Tensor] = encode) -> Predictor:
    assert adapter.classifier is not None
    classifier = put_together(adapter.classifier, adapter.tensors)
    cpu = torch.device("cpu")
    return Predictor(adapter, classifier.logits, False, shrunk(SIDE), features, cpu)


@dataclass(frozen=True)
class Client:
    """Asks a server that runs."""

    server: WebServer
    service: PredictionService

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.server.place, timeout=10)

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        connection = self.connect()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, named)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, json.loads(content), dict(answer.headers)

    def post(self, body: bytes, query: str = "") -> tuple[int, Any]:
        return self.ask("POST", f"/predict{query}", body, Content_Type="image/png")[:2]

    def form(self, files: Mapping[str, bytes], query: str = "") -> tuple[int, Any]:
        kind = 'multipart/form-data; boundary="mark"'
        return self.ask("POST", f"/predict{query}", form(files), Content_Type=kind)[:2]


def form(files: Mapping[str, bytes]) -> bytes:
    parts = [
        b'--mark\r\nContent-Disposition: form-data; name="images"; filename="%s"\r\n'
        b"Content-Type: image/png\r\n\r\n%s\r\n" % (name.encode(), content)
        for name, content in files.items()
    ]
    return b"".join(parts) + ENDING.encode()


@pytest.fixture
def started() -> Iterator[Callable[..., Client]]:
    """A function that starts a server of a predictor."""
    with contextlib.ExitStack() as stack:

        def start(of: Predictor, *, seconds: float = 10.0, **limits: int) -> Client:
            server = stack.enter_context(WebServer("127.0.0.1", 0, seconds=seconds))
            return Client(server, stack.enter_context(answering(server, of, **limits)))

        yield start


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("", PredictionForm()),
        ("?top=2&min_confidence=0.9", PredictionForm(2, 0.9)),
        ("?unknown=true&coverage=0.8", PredictionForm(unknown=True, coverage=0.8)),
    ],
)
def test_answers_are_those_of_predict(
    started: Callable[..., Client], adapter: Adapter, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, query: str, asked: PredictionForm,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    files = {f"{i} ä.png": png(i) for i in range(5)} | {"no image.png": b"hello"}
    for name, content in files.items():
        Path(name).write_bytes(content)
    expected = [json.loads(x) for x in lines(stream(predictor(adapter), files, asked), "jsonl")]
    client = started(predictor(adapter))
    assert client.form(files, query) == (200, {"predictions": expected})
    status, one = client.post(files["0 ä.png"], query)
    assert status == 200
    assert one["predictions"] == [{**expected[0], "path": "image"}]
    assert client.service.answered == 7


def test_a_bad_upload_gets_one_sentence_and_harms_nobody(
    started: Callable[..., Client], adapter: Adapter
) -> None:
    client = started(predictor(adapter), max_pixels=1000)
    multipart = "multipart/form-data"
    bomb = io.BytesIO()
    Image.new("1", (200, 100)).save(bomb, "PNG")
    for content, why in (
        (b"hello", "not an image in any format that is read: JPEG, PNG"),
        (png()[:200], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),  # Pillow would start a program
        (bomb.getvalue(), "20,000 pixels, the maximum is 1,000"),
    ):
        status, said = client.post(content)
        assert (status, list(said)) == (422, ["error"])
        assert said["error"].startswith("the one image cannot be read: ")
        assert why in said["error"]
    many = {f"{i}.png": b"" for i in range(PARTS + 1)}
    for body, kind, status, why in (
        (b"", "image/png", 400, "holds no image"),
        (png(), "text/plain", 415, "expected an image"),
        (png(), "", 415, "expected an image"),
        (form(many), f"{multipart}; boundary=mark", 413, "may hold 64 images"),
        (form({"a": png()})[:-8], f"{multipart}; boundary=mark", 400, "cut off"),
        (form({"a": png()}), f"{multipart}; boundary=other", 400, "cut off"),
        (form({"a": png()}), multipart, 400, "names no boundary"),
        (ENDING.encode(), f"{multipart}; boundary=mark", 400, "holds no image"),
        (b"--mark\r\nno header\r\n--mark--", f"{multipart}; boundary=mark", 400, "no header"),
        (form({"a": b"", "b": b"x"}), f"{multipart}; boundary=mark", 422, "none of the 2 images"),
    ):
        found, said, _ = client.ask("POST", "/predict", body, Content_Type=kind)
        assert (found, why in said["error"]) == (status, True), said
    for query, why in (
        ("?topp=1", "unknown parameter"),
        ("?top=none", "top must be of type integer"),
        ("?top=0", "top must be at least 1"),
        ("?unknown=perhaps", "unknown must be of type boolean"),
        ("?coverage=1.5", "coverage"),
        ("?coverage=0.999", "held"),
    ):
        found, said = client.post(png(), query)
        assert (found, why in said["error"]) == (400, True), said
    for method, path, status in (
        ("GET", "/predict", 405), ("POST", "/health", 405), ("GET", "/", 404),
        ("PUT", "/predict", 405),
    ):  # fmt: skip
        assert client.ask(method, path)[0] == status
    connection = client.connect()
    connection.request("HEAD", "/predict")
    unread = connection.getresponse()
    assert (unread.status, unread.headers["Allow"], unread.read()) == (405, "GET, POST", b"")
    connection.close()
    assert client.post(png())[0] == 200
    _, health, _ = client.ask("GET", "/health")
    assert (health["status"], health["waiting"]) == ("ok", 0)


def test_a_line_that_is_no_http_gets_a_status_and_one_sentence(
    started: Callable[..., Client], adapter: Adapter
) -> None:
    client = started(predictor(adapter))
    for line in (b"hello", b"GET / HTTP/none", b"x" * 2**17):
        with socket.create_connection(client.server.place, 10) as raw:
            raw.sendall(line + b"\r\n\r\n")
            answer = raw.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 4"), line[:20]
        assert b'{"error": ' in answer


def test_uploads_that_are_too_long_or_do_not_say_are_refused_unread(
    started: Callable[..., Client], adapter: Adapter
) -> None:
    client = started(predictor(adapter))
    for header, status in (
        (f"Content-Length: {BODY + 1}", 413),
        (f"Content-Length: {'9' * 30}", 413),
        (f"Content-Length: {BODY + 1}\r\nExpect: 100-continue", 413),
        ("Content-Length: -1", 400),
        ("Transfer-Encoding: chunked", 411),
    ):
        with socket.create_connection(client.server.place, 10) as raw:
            raw.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\nmore".encode())
            raw.shutdown(socket.SHUT_WR)
            answer = raw.makefile("rb").read()
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), header
        assert b'{"error": ' in answer
        assert b"Connection: close" in answer
    assert client.post(png())[0] == 200


def test_a_client_that_sends_too_slowly_is_cut_off(
    started: Callable[..., Client], adapter: Adapter
) -> None:
    client = started(predictor(adapter), seconds=0.2)
    with socket.create_connection(client.server.place, 10) as raw:
        raw.sendall(b"POST /predict HTTP/1.1\r\nContent-Length: 100\r\n\r\na")
        assert raw.recv(4096).startswith(b"HTTP/1.1 408 ")
    with socket.create_connection(client.server.place, 10) as raw:
        raw.sendall(b"POST /predict HTTP")  # not even a line
        assert raw.recv(4096) == b""


class Gate:
    """An encoder that waits to be let through, and notes how many images it gets at a time."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        self.entered.set()
        assert self.open.wait(10)
        return encode(pixels)


def test_requests_that_come_together_are_encoded_together(
    started: Callable[..., Client], adapter: Adapter
) -> None:
    gate = Gate()
    client = started(predictor(adapter, gate))
    images = [Image.open(io.BytesIO(png(i))) for i in range(6)]
    alone = list(stream(predictor(adapter), images, batch_size=1))
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(client.post, png(0))
        assert gate.entered.wait(10)
        others = [pool.submit(client.post, png(i)) for i in range(1, 6)]
        while client.ask("GET", "/health")[1]["waiting"] < 6:
            pass
        gate.open.set()
        answers = [one.result()[1]["predictions"][0] for one in (first, *others)]
    assert sum(gate.batches) == 6
    assert len(gate.batches) <= 3  # the last to be decoded may come a moment after the others
    for answer, one in zip(answers, alone, strict=True):
        assert answer["label"] == one.label  # type: ignore[union-attr]
        np.testing.assert_allclose(answer["probabilities"], one.probabilities, rtol=1e-4)  # type: ignore[union-attr]


def test_a_full_queue_refuses_further_images_until_there_is_room(
    started: Callable[..., Client], adapter: Adapter
) -> None:
    gate = Gate()
    client = started(predictor(adapter, gate), queue=2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.form, {"a": png(0), "b": png(1)})
        assert gate.entered.wait(10)
        status, said, headers = client.ask("POST", "/predict", png(), Content_Type="image/png")
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "2 images are being answered" in said["error"]
        gate.open.set()
        assert first.result()[0] == 200
    assert client.post(png())[0] == 200


def test_a_failure_of_the_model_is_one_answer_and_not_the_end(
    started: Callable[..., Client], adapter: Adapter, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = iter([True, False])

    def fails_once(pixels: Tensor) -> Tensor:
        if next(broken):
            raise RuntimeError("out of something")
        return encode(pixels)

    client = started(predictor(adapter, fails_once))
    assert client.post(png())[0] == 500
    assert "out of something" in capsys.readouterr().err
    assert client.post(png())[0] == 200


def test_connections_and_bytes_beyond_the_maximum_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web_server, "CONNECTIONS", 1)
    monkeypatch.setattr(web_server, "BODIES", 3)
    with WebServer("127.0.0.1", 0) as server, server.serving(lambda request: as_json("yes")):
        address = server.place
        held = http.client.HTTPConnection(*address, timeout=10)
        held.request("GET", "/")
        assert held.getresponse().read() == b'"yes"'
        with socket.create_connection(address, 10) as other:
            refused = other.makefile("rb").read()
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert refused.endswith(b'\r\n\r\n{"error": "too many connections; try again"}')
        held.request("POST", "/", b"four")
        assert held.getresponse().status == 503


def test_a_port_that_is_taken_or_is_none_is_one_sentence() -> None:
    with WebServer("127.0.0.1", 0) as server:
        _, port = server.place
        with pytest.raises(UserError, match=rf"port {port} is taken .*; give --port another"):
            WebServer("127.0.0.1", port)
    with pytest.raises(UserError, match=r"--port must be 0\.\.65535; got 70000"):
        WebServer("127.0.0.1", 70000)
    with pytest.raises(UserError, match="give --host an address of this machine"):
        WebServer("192.0.2.1", 0)


def test_an_image_may_get_several_labels_and_the_description_says_so(
    started: Callable[..., Client], adapter: Adapter
) -> None:
    n = len(adapter.classnames)
    rule = LabelRule((1.0,) * n, (0.0,) * n, (0.0, *(1.0,) * (n - 2), 0.0), 9, 0.8)
    client = started(predictor(replace(adapter, label_rule=rule)))
    _, description, _ = client.ask("GET", "/openapi.json")
    described = description["components"]["schemas"]["Answer"]["properties"]["predictions"]
    _, answer = client.post(png())
    [found] = answer["predictions"]
    assert set(found) == set(described["items"]["anyOf"][0]["properties"])
    names = adapter.classnames
    assert set(found["label"].split(";")) == {names[0], names[-1]}
    assert len(found["label_probabilities"]) == 2
    taken = {one["name"] for one in description["paths"]["/predict"]["post"]["parameters"]}
    for name, value in {
        "top": "1",
        "min_confidence": "0.5",
        "unknown": "1",
        "coverage": "0.9",
    }.items():
        status, said = client.post(png(), f"?{name}={value}")
        assert (status == 200) == (name in taken), said


def test_the_description_names_what_predict_takes_and_what_comes_back(
    started: Callable[..., Client], adapter: Adapter
) -> None:
    client = started(predictor(adapter))
    status, found, _ = client.ask("GET", "/openapi.json")
    assert status == 200
    predict = found["paths"]["/predict"]["post"]
    assert {one["name"] for one in predict["parameters"]} == set(PARAMETERS)
    assert set(PARAMETERS) == set(PredictionForm.__dataclass_fields__)
    assert {"408", "411", "413", "415", "422", "503"} < set(predict["responses"])
    schemas = found["components"]["schemas"]
    for name in [
        text.split('"')[0] for text in json.dumps(found).split("#/components/schemas/")[1:]
    ]:
        assert name in schemas
    prediction = schemas["Answer"]["properties"]["predictions"]["items"]["anyOf"][0]
    _, answer = client.post(png(), "?unknown=1&coverage=0.8")
    assert set(answer["predictions"][0]) == set(prediction["properties"])
    assert prediction["properties"]["classes"]["items"]["enum"] == list(adapter.classnames)

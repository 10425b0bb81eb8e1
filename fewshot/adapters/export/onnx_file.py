"""An adapter as one ONNX file: standardized pixels in, logits and calibrated probabilities out."""

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cache.errors import UserError
from cache.images.preprocessing import Preprocess
from cache.models.encoder import Encoder
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.export.check import probes, require_close
from fewshot.adapters.export.model_card import identity
from fewshot.adapters.export.onnx_graph import OnnxGraph, graph_of
from fewshot.adapters.opened_adapter import with_encoder
from fewshot.adapters.predictor import Predictor
from fewshot.results.log import program_version

FILE = "model.onnx"
OPSET = 18
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def require_onnx() -> None:
    """Raise unless ONNX files can be written and run here.

    Raises:
        UserError: A package is missing; says what to install.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"an ONNX file is written and checked with {', '.join(PACKAGES)}, and {name} is "
                "not here; install them with: pip install 'fewshot-clip[onnx]' (in a checkout: "
                "pip install '.[onnx]')"
            )


def write_onnx(adapter: Adapter, encoder: Encoder, folder: Path) -> str:
    """Write `model.onnx` into the folder and check it; how to run it, in Markdown.

    Weights of more than 2 GB, which one such file cannot hold, lie in `model.onnx.data` beside it.

    Args:
        adapter: Of any method that classifies images one by one.
        encoder: Its model, in float32 on the CPU.
        folder: There already.

    Raises:
        UserError: The model is another, has no such graph, or the file does not compute what the
            adapter does.
    """
    predictor = with_encoder(adapter, encoder)
    path = folder / FILE
    write_graph(graph_of(adapter, encoder), predictor, path)
    check(path, predictor)
    return how_to_run(
        predictor.preprocess,
        exif=bool(adapter.preprocessing.get("exif")),
        several=adapter.label_rule is not None,
    )


def write_graph(graph: OnnxGraph, predictor: Predictor, path: Path) -> None:
    """Write the graph, for any number of images at a time, with what there is to know of it.

    Raises:
        UserError: PyTorch cannot make one of this model.
    """
    size = predictor.preprocess.size
    example = torch.zeros(2, 3, size, size)
    try:
        with torch.no_grad(), _quiet():
            program: Any = torch.onnx.export(
                graph.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes={"pixels": {0: "batch"}},
                input_names=["pixels"],
                output_names=["logits", "probabilities"],
                verbose=False,
            )
            program.model.metadata_props.update(_metadata(predictor))
            program.save(path)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        adapter = predictor.adapter
        raise UserError(
            f"PyTorch makes no ONNX graph of {adapter.method} on {adapter.model_name} ({reason}); "
            "use the adapter with `fewshot predict`, or export a method of another kind"
        ) from error


def check(path: Path, predictor: Predictor) -> None:
    """Raise unless onnxruntime computes from the file what the predictor computes.

    Raises:
        UserError: A logit differs by more than 1e-4 of the maximum, or a probability by 1e-4.
    """
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for pixels in probes(predictor.preprocess):
        features = predictor.features(pixels)
        logits, probabilities = session.run(None, {"pixels": pixels.numpy()})
        require_close("logits", torch.from_numpy(logits), predictor.logits(features))
        ours = predictor.probabilities(features)
        require_close("probabilities", torch.from_numpy(probabilities), ours, scale=1.0)


def how_to_run(preprocess: Preprocess, *, exif: bool, several: bool = False) -> str:
    """Markdown with the Python that classifies one image, of which it may print several labels."""
    method = "BILINEAR" if preprocess.interpolation.endswith("bilinear") else "BICUBIC"
    fitted = _FITTED[preprocess.resize_mode].format(
        side="size" if preprocess.resized == preprocess.size else preprocess.resized,
        method=f"Image.Resampling.{method}",
        fill=(preprocess.fill_color,) * 3,
    )
    turned = "ImageOps.exif_transpose(image)" if exif else "image"
    code = _CODE.format(
        size=preprocess.size,
        mean=list(preprocess.mean),
        std=list(preprocess.std),
        imports="Image, ImageOps" if exif else "Image",
        turned=turned,
        fitted=fitted,
        shown=_SEVERAL if several else _ONE,
    )
    return (
        f"`{FILE}` takes `pixels` (batch, 3, {preprocess.size}, {preprocess.size}) and gives "
        "`logits` and `probabilities` (batch, classes), all float32. With `pip install numpy "
        f"pillow onnxruntime`, in this folder:\n\n```python\n{code}```\n"
    )


def _metadata(predictor: Predictor) -> dict[str, str]:
    """The metadata of the file; JSON but for plain words."""
    adapter = predictor.adapter
    rule = adapter.label_rule
    if rule is None:
        decision = {"temperature": repr(adapter.calibration.temperature)}
    else:
        decision = {"thresholds": json.dumps(rule.thresholds)}
    return {
        "classes": json.dumps(list(adapter.classnames), ensure_ascii=False),
        **decision,
        "preprocessing": json.dumps(
            {**predictor.preprocess.identity(), "exif": bool(adapter.preprocessing.get("exif"))}
        ),
        "model": json.dumps(identity(adapter), ensure_ascii=False),
        "method": adapter.method,
        "settings": json.dumps(dict(adapter.settings), ensure_ascii=False),
        "made by": f"fewshot-clip {program_version()}",
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter warns of, logs and prints: what it makes is checked."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


_CODE = """\
import json

import numpy as np
import onnxruntime
from PIL import {imports}

size, mean, std = {size}, {mean}, {std}
image = Image.open("image.jpg")
image = {turned}.convert("RGB")
w, h = image.size
{fitted}
x = (np.asarray(image, dtype=np.float32) / 255 - np.float32(mean)) / np.float32(std)
session = onnxruntime.InferenceSession("model.onnx")
logits, probabilities = session.run(None, {{"pixels": x.transpose(2, 0, 1)[None]}})
with open("classes.json", encoding="utf-8") as file:
    names = json.load(file)
{shown}
"""
_ONE = "print(names[probabilities[0].argmax()], probabilities[0].max())"
_SEVERAL = """\
about = session.get_modelmeta().custom_metadata_map
for name, p, threshold in zip(names, probabilities[0], json.loads(about["thresholds"])):
    if p >= threshold:
        print(name, p)"""
_FITTED = {
    "shortest": """\
w, h = {side} * w // min(w, h), {side} * h // min(w, h)
left, top = round((w - size) / 2), round((h - size) / 2)
image = image.resize((w, h), {method}).crop((left, top, left + size, top + size))""",
    "squash": """\
w, h = {side}, {side}
left, top = round((w - size) / 2), round((h - size) / 2)
image = image.resize((w, h), {method}).crop((left, top, left + size, top + size))""",
    "longest": """\
w, h = round(w / (max(w, h) / size)), round(h / (max(w, h) / size))
canvas = Image.new("RGB", (size, size), {fill})
canvas.paste(image.resize((w, h), {method}), ((size - w) // 2, (size - h) // 2))
image = canvas""",
}

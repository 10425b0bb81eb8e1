"""An adapter as a folder that open_clip loads: both towers, and a matrix that is the classifier.

What a method changed in the towers is folded into their own weights; only methods of which that is
exact are exported. The towers of all others that end in a matrix are the model's, as they were.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import TINY, load
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.export.check import probes, require_close
from fewshot.adapters.export.folding import Head, folded, matrix_of
from fewshot.adapters.opened_adapter import attached, with_encoder
from fewshot.adapters.predictor import Predictor
from fewshot.endtoend import text_tower
from fewshot.endtoend.clip import Clip

CONFIG, WEIGHTS, HEAD = (
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "classifier.safetensors",
)
PROMPTS_CHECKED = 32


@torch.no_grad()
def write_open_clip(adapter: Adapter, encoder: Encoder, folder: Path) -> str:
    """Write both towers and the classifier and check them; how to run them, in Markdown.

    Args:
        adapter: Of a method that `require_towers` lets pass.
        encoder: Its model, in float32 on the CPU.
        folder: There already.

    Raises:
        UserError: The model is another, has no such form, or what was written does not compute
            what the adapter does.
    """
    predictor = with_encoder(adapter, encoder)
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in adapter.classnames]
    prompts = prompts[:PROMPTS_CHECKED]
    head = matrix_of(adapter)
    if head is not None:
        model, text = head.tower(encoder.model), encoder.encode_text(prompts)
    else:
        learner, clip = attached(adapter, Clip.of(encoder))
        weight = learner.logit_scale * normalize(learner.text().float(), dim=-1)
        head = Head(weight, None, unit_norm=True)
        text = text_tower.encode(clip.model, clip.tokens(prompts))
        model = folded(clip.model)
        if new := sorted(model.state_dict().keys() - encoder.model.state_dict().keys()):
            raise UserError(
                f"{adapter.method} gave the model a {new[0]}, for which its architecture has no "
                "place; use --to onnx"
            )
    _write(adapter, encoder, predictor, model, head, folder)
    check(folder, predictor, head, prompts, text)
    before = encoder.model.state_dict()
    changed = any(not torch.equal(t, before[name]) for name, t in model.state_dict().items())
    return _how_to_run(adapter, head, changed)


def check(folder: Path, predictor: Predictor, head: Head, prompts: list[str], text: Tensor) -> None:
    """Raise unless open_clip computes from the folder what the predictor computes.

    Args:
        folder: What was written.
        predictor: What classifies as the adapter does, nothing folded.
        head: What was written as the classifier.
        prompts: P sentences.
        text: (P, D) their text features, nothing folded.

    Raises:
        UserError: A feature or logit differs by more than 1e-4 of the maximum.
    """
    loaded = load(f"local-dir:{folder}", device="cpu", precision="fp32")
    if loaded.preprocess != predictor.preprocess:
        raise UserError(
            f"open_clip would make pixels by {loaded.preprocess}, and the adapter needs "
            f"{predictor.preprocess}, so nothing was written; use --to onnx"
        )
    require_close("text features", loaded.encode_text(prompts), text)
    for pixels in probes(predictor.preprocess):
        ours, theirs = predictor.features(pixels), loaded.encode_images(pixels)
        require_close("image features", head.form(theirs), head.form(head.of_tower(ours)))
        require_close("logits", head.logits(theirs), predictor.logits(ours))


def model_config(encoder: Encoder) -> dict[str, Any]:
    """open_clip's configuration of the architecture, QuickGELU as it really is."""
    import open_clip

    name, arch = str(encoder.identity["name"]), str(encoder.identity["arch"])
    own = name.startswith(("hf-hub:", "local-dir:"))
    source = f"local-dir:{TINY}" if name == "tiny" else name if own else arch
    config: dict[str, Any] = open_clip.get_model_config(source)
    return {**config, "quick_gelu": True} if encoder.identity["quick_gelu"] else config


def _write(
    adapter: Adapter, encoder: Encoder, predictor: Predictor, model: Any, head: Head, folder: Path
) -> None:
    config = {"model_cfg": model_config(encoder), "preprocess_cfg": predictor.preprocess.identity()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    weights = {name: t.detach().contiguous().clone() for name, t in model.state_dict().items()}
    # Not by save_file, whose errors are not the system's and whose files only their owner can read.
    (folder / WEIGHTS).write_bytes(save(weights, {"format": "pt"}))
    classifier = {
        "weight": head.weight.detach().float().contiguous(),
        "temperature": torch.tensor(adapter.calibration.temperature),
    }
    if head.bias is not None:
        classifier["bias"] = head.bias.detach().float().contiguous()
    (folder / HEAD).write_bytes(save(classifier, {"format": "pt"}))
    save_tokenizer: Callable[[Path], None] | None
    save_tokenizer = getattr(encoder.tokenizer, "save_pretrained", None)
    if save_tokenizer is not None:  # open_clip's own, which most models use, needs no file
        save_tokenizer(folder)


def _how_to_run(adapter: Adapter, head: Head, changed: bool) -> str:
    """Markdown: what is in the folder, and the Python that classifies one image."""
    turned = adapter.preprocessing.get("exif")
    code = _CODE.format(
        imports="Image, ImageOps" if turned else "Image",
        turned="ImageOps.exif_transpose(image)" if turned else "image",
        normalize=head.unit_norm,
        bias="" if head.bias is None else ' + head["bias"]',
    )
    if changed:
        towers = "the changed towers, every update folded into open_clip's own weights"
    else:
        towers = "the model's towers as they were: what was learned is the classifier"
    return (
        f"`{WEIGHTS}` holds {towers}. `{HEAD}` holds the `weight` (classes, features) "
        "that image features are multiplied by, so no prompt has to be encoded, and the "
        "`temperature` that makes probabilities of logits. With `pip install open_clip_torch`, in "
        f"this folder:\n\n```python\n{code}```\n"
    )


_CODE = """\
import json

import open_clip
import torch
from PIL import {imports}
from safetensors.torch import load_file

model, preprocess = open_clip.create_model_from_pretrained("local-dir:.")
head = load_file("classifier.safetensors")
image = Image.open("image.jpg")
pixels = preprocess({turned}.convert("RGB"))[None]
with torch.no_grad():
    features = model.eval().encode_image(pixels, normalize={normalize})
logits = features @ head["weight"].T{bias}
probabilities = (logits / head["temperature"]).softmax(dim=1)
with open("classes.json", encoding="utf-8") as file:
    names = json.load(file)
print(names[probabilities[0].argmax()], float(probabilities[0].max()))
"""

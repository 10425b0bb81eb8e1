"""A folder for the Hugging Face hub: the adapter itself and, where there is such a graph, ONNX."""

from pathlib import Path

from cache.errors import UserError
from cache.models.loading import load
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.export.exportable import require_exportable
from fewshot.adapters.export.onnx_file import FILE as ONNX
from fewshot.adapters.export.onnx_file import require_onnx, write_onnx
from fewshot.adapters.hub import FILE


def write_hub(adapter: Adapter, folder: Path, model: str | None = None) -> str:
    """Write the adapter into a folder, and its graph if there is one; how to run it, in Markdown.

    Args:
        adapter: Of any method.
        folder: There already.
        model: The model under another name, such as `local-dir:` of the same weights.
    """
    adapter.save(folder / FILE)
    named = adapter.model_name
    options = " --model NAME" if "local-dir:" in named or "@" in named else ""
    text = (
        f"`{FILE}` is for [fewshot](https://pypi.org/project/fewshot-clip/), which fetches it:\n\n"
        f"```sh\nfewshot predict hf-hub:USER/NAME photo.jpg{options}\n```\n"
    )
    if options:
        text += "\nNAME is where you have the model, by the weights under *Identity*.\n"
    try:
        require_onnx()
        require_exportable(adapter)
        encoder = load(model or adapter.model_name, device="cpu", precision="fp32")
        return f"{text}\n{write_onnx(adapter, encoder, folder)}"
    except UserError as error:
        for path in folder.glob(f"{ONNX}*"):
            path.unlink()
        return f"{text}\nThere is no `{ONNX}` beside it: {error}.\n"

"""An adapter for other programs and other people: a folder with what they load, and a card."""

import hashlib
import json
from functools import partial
from pathlib import Path

from cache.errors import UserError, unknown
from cache.files.atomic_folder import replacing_folder
from cache.location import IMAGE_ONLY, require_writable
from cache.models.loading import load
from fewshot.adapters.adapter import Adapter, load_adapter
from fewshot.adapters.export.clip_lora_folder import require_pairs, write_clip_lora_folder
from fewshot.adapters.export.exportable import require_exportable, require_one_label
from fewshot.adapters.export.folding import require_towers
from fewshot.adapters.export.hub_folder import write_hub
from fewshot.adapters.export.model_card import model_card
from fewshot.adapters.export.onnx_file import require_onnx, write_onnx
from fewshot.adapters.export.open_clip_folder import write_open_clip
from fewshot.adapters.export.peft_folder import write_peft
from fewshot.adapters.hub import PREFIX

WRITERS = {
    "open_clip": write_open_clip,
    "onnx": write_onnx,
    "clip-lora": write_clip_lora_folder,
    "peft": write_peft,
}
TARGETS = (*WRITERS, "hub")
LIBRARIES = {"hub": "fewshot-clip"}  # the hub's names of what runs them, where these differ
CLASSES, CARD, RECEIPT = "classes.json", "README.md", "export.json"


def export(
    adapter: Adapter | Path | str,
    to: str,
    out: Path | str | None = None,
    *,
    model: str | None = None,
) -> Path:
    """The folder in which the adapter lies in another program's form, checked, with its card.

    It is written whole or not at all. What is there already is replaced if an export wrote it and
    nobody has changed it since.

    Args:
        adapter: What was learned, or its file.
        to: `open_clip`, `onnx`, `clip-lora`, `peft` or `hub`.
        out: The folder; without it the adapter file's name, a hyphen and the target.
        model: The model under another name, such as `local-dir:` of the same weights.

    Raises:
        UserError: No such target, a method that it has no place for, a package that is missing,
            another model's weights, a folder with something else in it, or an export that does not
            compute what the adapter does.
    """
    if to not in TARGETS:
        raise unknown("export target", to, TARGETS)
    if not isinstance(adapter, Adapter):
        adapter = Path(adapter)
        beside = Path(adapter.name) if str(adapter).startswith(PREFIX) else adapter
        out = out or beside.with_name(f"{adapter.stem}-{to}")
    if out is None:
        raise UserError("an adapter in memory has no name to export under; give out, a folder")
    out = Path(out)
    require_writable(folders={"--out": out})
    if isinstance(adapter, Path):
        adapter = load_adapter(adapter)
    _require_replaceable(out)
    if to == "hub":
        write = partial(write_hub, adapter, model=model)
    else:
        _require_target(adapter, to)
        encoder = load(model or adapter.model_name, device="cpu", precision="fp32")
        write = partial(WRITERS[to], adapter, encoder)
    with replacing_folder(out) as folder:
        how_to_run = write(folder)
        names = json.dumps(list(adapter.classnames), ensure_ascii=False, indent=1)
        (folder / CLASSES).write_text(names + "\n", encoding="utf-8")
        library = LIBRARIES.get(to, to)
        card = model_card(adapter, library=library, how_to_run=how_to_run, files=_digests(folder))
        (folder / CARD).write_text(card, encoding="utf-8")
        receipt = json.dumps({"made by": "fewshot export", "files": _digests(folder)}, indent=1)
        (folder / RECEIPT).write_text(receipt + "\n", encoding="utf-8")
    return out


def _require_target(adapter: Adapter, to: str) -> None:
    """Refuse what the target has no place for, before the model is loaded."""
    require_exportable(adapter)
    if to == "onnx":
        require_onnx()
    elif to in ("clip-lora", "peft"):
        require_pairs(adapter)
    else:
        require_one_label(adapter)
        require_towers(adapter)
        _require_text_tower(adapter)


def _require_text_tower(adapter: Adapter) -> None:
    """Refuse a model of images alone."""
    if adapter.model_name.startswith(IMAGE_ONLY):
        raise UserError(
            f"open_clip opens models of two towers, and {adapter.model_name} encodes images alone; "
            "export it with --to onnx"
        )


def _require_replaceable(out: Path) -> None:
    """Refuse a folder that holds anything but an export as it was written."""
    if not out.exists():
        return
    there = _digests(out)
    written = _receipt(out)
    if strange := sorted(there.keys() - written.keys() - {RECEIPT}):
        raise UserError(
            f"{out} holds {strange[0]}, which no export wrote; give --out another folder"
        )
    if changed := sorted(name for name in written if there.get(name) != written[name]):
        raise UserError(
            f"{out} is an export of which {changed[0]} has been changed since; give --out another "
            "folder, or remove this one"
        )


def _receipt(folder: Path) -> dict[str, str]:
    """Name -> digest of what an export wrote there; empty where none did."""
    try:
        files = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _digests(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file in the folder, in order; of a folder in it, nothing."""
    digests = {}
    for path in sorted(folder.iterdir()):
        digests[path.name] = ""
        if path.is_file():
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests

"""A model card: what an exported adapter is, how it was made and how sure it may be, in Markdown.

Nothing is said that the adapter does not know. What only its author knows is left to fill in. The
front matter's fields are those of the Hugging Face hub.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cache.errors import count
from cache.location import weights_file
from fewshot.adapters.adapter import Adapter
from fewshot.model_selection.calibration import Calibration
from fewshot.tables import Table, markdown, markdown_text

TO_FILL_IN = "*To be filled in by the author.*"
CLASSES_SHOWN = 100
_ELSEWHERE = {  # of what is known of the training, what has a place of its own on the card
    "versions", "images per class", "test accuracy", "test images", "imported",
}  # fmt: skip


def model_card(adapter: Adapter, *, library: str, how_to_run: str, files: Mapping[str, str]) -> str:
    """The card, Markdown with YAML front matter.

    Args:
        adapter: What was exported.
        library: The hub's name of what runs it.
        how_to_run: Markdown.
        files: Name -> SHA-256 of what lies beside the card.
    """
    parts = [
        _front_matter(adapter, library),
        f"# {markdown_text(adapter.method)} on {markdown_text(str(identity(adapter)['name']))}",
        _what_it_is(adapter),
        _section("Classes", _classes(adapter.classnames)),
        _section("Intended use", TO_FILL_IN),
        _section("How it was made", _making(adapter)),
        _section("How good it is", _accuracy(adapter)),
        _section("Prompts", _prompts(adapter)),
        _section("Preprocessing", _preprocessing(adapter)),
        _section("How to run it", how_to_run.strip()),
        _section("Limits", _limits(adapter)),
        _section("Identity", _identity(adapter, files)),
    ]
    return "\n\n".join(parts) + "\n"


def identity(adapter: Adapter) -> dict[str, Any]:
    """The record of the model, without its place on its author's disk."""
    name = adapter.model_name
    arch, file = weights_file(name)
    own = {"name": f"{arch}@{file.name}"} if file is not None else {}
    if name.startswith("local-dir:"):
        own = {key: Path(adapter.model[key]).name for key in ("name", "arch")}
    return {
        key: own.get(key, value) for key, value in adapter.model.items() if value not in ("", None)
    }


def _front_matter(adapter: Adapter, library: str) -> str:
    lines = [
        "---",
        "# The license is yours to fill in. The model's, the data's and this adapter's are three",
        "# things: state the adapter's here, and see that the other two allow it.",
        "license:",
        f"library_name: {library}",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in ("clip", "few-shot", adapter.method)),
    ]
    name = adapter.model_name
    if name.startswith("hf-hub:"):
        lines.append(f"base_model: {json.dumps(name.removeprefix('hf-hub:'))}")
    return "\n".join([*lines, "---"])


def _what_it_is(adapter: Adapter) -> str:
    dataset = adapter.training.get("dataset")
    images = adapter.training.get("images")
    learned = f"from {count(images, 'image')}" if images else "from the classes' names"
    of = f" of {markdown_text(str(dataset))}" if dataset else ""
    model, method = markdown_text(str(identity(adapter)["name"])), markdown_text(adapter.method)
    return (
        f"An image classifier of {len(adapter.classnames)} classes: the CLIP model {model}, "
        f"adapted by {method} {learned}{of}."
    )


def _classes(names: tuple[str, ...]) -> str:
    shown = _table("id", dict(enumerate(names[:CLASSES_SHOWN])), "class")
    more = len(names) - CLASSES_SHOWN
    return f"{shown}\n\nAnd {more} more, in `classes.json`." if more > 0 else shown


def _making(adapter: Adapter) -> str:
    known = {k: v for k, v in adapter.training.items() if k not in _ELSEWHERE and v is not None}
    per_class = adapter.training.get("images per class")
    if per_class:
        known["images per class"] = _range(per_class)
    if adapter.training.get("imported"):
        known["features"] = "imported, not computed by this program"
    rows = {"method": adapter.method, **known, "precision": adapter.precision}
    settings = _table("hyper-parameter", adapter.settings)
    return f"{_table('', rows)}\n\n{settings}"


def _accuracy(adapter: Adapter) -> str:
    if (rule := adapter.label_rule) is not None:
        return (
            f"- Mean average precision: {_percent(rule.mean_average_precision)}, cross-validated "
            f"on {count(rule.images, 'image')}, on which the sigmoid and the threshold of each "
            "class were found as well."
        )
    return "\n".join([*_calibration(adapter.calibration), *_test(adapter.training)])


def _calibration(c: Calibration) -> Iterable[str]:
    if not c.images:
        yield (
            "- Its probabilities are not calibrated: there were no labeled images besides those "
            "that it learned from."
        )
        return
    where = {
        "cv": "cross-validated on the images it learned from, each judged by a fit without it",
        "val": "on validation images",
    }.get(c.source, markdown_text(str(c.source)))
    if c.accuracy is not None:
        within = f", 95 % interval {_percent(*c.interval)}" if c.interval else ""
        yield f"- Accuracy: {_percent(c.accuracy)}{within}, {where} ({count(c.images, 'image')})."
    if c.error is not None and c.error_before is not None:
        yield (
            f"- Expected calibration error on the same images: {_percent(c.error)} at the "
            f"temperature {c.temperature:.4g} that was chosen on them, {_percent(c.error_before)} "
            "without."
        )


def _test(training: Mapping[str, Any]) -> Iterable[str]:
    if (accuracy := training.get("test accuracy")) is not None:
        n = training.get("test images")
        images = f" ({count(n, 'image')})" if n else ""
        yield f"- Accuracy on the test split: {_percent(accuracy)}{images}."


def _prompts(adapter: Adapter) -> str:
    if adapter.prompts:
        first = [(adapter.classnames[i], own[0]) for i, own in enumerate(adapter.prompts) if own]
        total = sum(map(len, adapter.prompts))
        return f"{total} in all, such as\n\n{_table('class', dict(first[:5]), 'prompt')}"
    if adapter.templates:
        return _table("id", dict(enumerate(adapter.templates)), "the dataset's templates")
    if adapter.training.get("text recipe"):
        return "Not known: its text features came without their sentences."
    return "None: it learned without text."


def _preprocessing(adapter: Adapter) -> str:
    if adapter.preprocessing:
        return _table("", adapter.preprocessing)
    return "The model's own; that of the images it learned from is not known."


def _limits(adapter: Adapter) -> str:
    n = len(adapter.classnames)
    others = "an image of anything else gets one of them too, often with a\n  high probability."
    if adapter.label_rule is not None:
        others = "an image of anything else may get some of them too."
    return f"""\
- It knows {n} classes and no others: {others}
- Its probabilities are calibrated, if at all, on images like those it was made with; on others
  (another camera, place or mix of classes) they may be far off.
- It learned from few images, so what these have in common by chance (a background, an angle) may
  count as the class.
- What the model learned before, biases included, it has still."""


def _identity(adapter: Adapter, files: Mapping[str, str]) -> str:
    tables = [_table("model", identity(adapter)), _table("file", files, "SHA-256")]
    if versions := adapter.training.get("versions"):
        tables.append(_table("version of", versions))
    return "\n\n".join(tables)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _table(head: str, rows: Mapping[Any, Any], value: str = "") -> str:
    lines = [(str(key), _plain(row)) for key, row in rows.items()]
    return markdown(Table("", (head, value), lines))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _range(counts: Iterable[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _percent(*shares: float) -> str:
    return " to ".join(f"{100 * share:.1f}" for share in shares) + " %"

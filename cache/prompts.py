"""Class names and templates into prompt sets, every prompt tied to a class id.

Two text recipes are in use, and both must come out of one store. Tip-Adapter, GDA and their kin
write "Apply_Lipstick" as "Apply Lipstick"; TaskRes and CLAP prompt with the raw name. Where a name
has an underscore, both spellings are kept: the sets "templates" and "templates-raw".
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import UserError, printable
from cache.files.json_text import parse_json

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PromptSet:
    """P prompts and the class id of each.

    Ids, not names, because names repeat: ImageNet has two classes called "missile".
    """

    prompts: tuple[str, ...]
    labels: tuple[int, ...]

    def digest(self) -> str:
        """SHA-256 of prompts and labels in order."""
        return hashlib.sha256(json.dumps([self.prompts, self.labels]).encode()).hexdigest()


def from_templates(
    classnames: Sequence[str], templates: Sequence[str], *, raw_names: bool = False
) -> PromptSet:
    """Every template filled with every class name, template by template: P = T x C.

    Args:
        classnames: C names; underscores become spaces unless `raw_names`.
        templates: T sentences, each with one {} for the name.
        raw_names: Keep the names as they are spelled.

    Raises:
        UserError: No template, or one without exactly one {}.
    """
    if not templates:
        raise UserError('no template; give at least one, such as --template "a photo of a {}."')
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f"a template needs one {{}} where the class name goes; got {template!r}"
            )
    return PromptSet(
        prompts=tuple(p for t in templates for p in filled(t, classnames, raw_names=raw_names)),
        labels=tuple(range(len(classnames))) * len(templates),
    )


def filled(template: str, classnames: Sequence[str], *, raw_names: bool = False) -> list[str]:
    """The template with each class name in place of {}; underscores become spaces unless raw."""
    names = classnames if raw_names else [name.replace("_", " ") for name in classnames]
    return [template.replace("{}", name) for name in names]


def from_file(path: Path, classnames: Sequence[str]) -> PromptSet:
    """The prompts of a JSON file {class: [sentence, ...]}, the form CuPL publishes.

    Keys are class names, compared without regard to case, underscores and hyphens, or class ids.
    Classes of the same name share their sentences.

    Raises:
        UserError: Not such a file, a class without sentences, or a key that is no class.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read prompts from {path}: {error.strerror}") from error
    table = parse_json(content, str(path))
    if not isinstance(table, dict) or not all(
        isinstance(v, list) and v and all(isinstance(s, str) for s in v) for v in table.values()
    ):
        raise UserError(f"{path}: expected a JSON object of class -> list of sentences")
    by_id = set(table) == {str(i) for i in range(len(classnames))}
    keys = [str(i) if by_id else _plain(name) for i, name in enumerate(classnames)]
    served = {key if by_id else _plain(key): sentences for key, sentences in table.items()}
    missing = sorted({classnames[i] for i, key in enumerate(keys) if key not in served})
    strangers = [printable(key[:60]) for key in sorted(set(served) - set(keys))]
    if missing:
        hint = f"; its keys without a class: {', '.join(strangers[:5])}" if strangers else ""
        raise UserError(
            f"{path} has no prompts for {len(missing)} of {len(classnames)} classes: "
            f"{', '.join(missing[:5])}{hint}"
        )
    if strangers:
        raise UserError(f"{path}: keys that are no class: {', '.join(strangers[:5])}")
    rows = [(sentence, i) for i, key in enumerate(keys) for sentence in served[key]]
    return PromptSet(tuple(s for s, _ in rows), tuple(i for _, i in rows))


def prompt_sets(
    classnames: Sequence[str],
    templates: Sequence[str],
    files: Sequence[Path] = (),
    further: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, PromptSet]:
    """All prompt sets a store is to hold, by name.

    "templates"; "templates-raw" where some class name has an underscore; the further sets of
    templates; and one set per file, called by the file's stem.

    Raises:
        UserError: A bad template or file, or two sets of one name.
    """
    sets = {"templates": from_templates(classnames, templates)}
    if any("_" in name for name in classnames):
        sets["templates-raw"] = from_templates(classnames, templates, raw_names=True)
    for name, more in (further or {}).items():
        sets[name] = from_templates(classnames, more)
    for path in files:
        if path.stem in sets:
            raise UserError(f"two prompt sets would be called {path.stem!r}; rename {path}")
        sets[path.stem] = from_file(path, classnames)
    return sets


def cut_prompts(tokenizer: "Callable[..., Tensor]", prompts: Sequence[str]) -> str | None:
    """Say which prompts the model reads in part only; None where it reads all of each.

    Tokenizers cut what is longer than the model's context and say nothing.

    Args:
        tokenizer: open_clip's, which takes the length to cut at as `context_length`.
        prompts: The prompts.

    Raises:
        UserError: What is left of two prompts is the same, so the model cannot tell them apart.
    """
    length = tokenizer(["a"]).shape[1]
    # A token is a byte at least, and two of them mark start and end.
    long = [p for p in dict.fromkeys(prompts) if len(p.encode()) > length - 2]
    if not long:
        return None
    tokens = tokenizer(long, context_length=2 * length)
    rows = [i for i, row in enumerate(tokens[:, length:]) if (row != row[-1]).any()]  # not padding
    if not rows:
        return None
    which = (
        f"the model reads {length} tokens of a prompt, and {len(rows)} of {len(prompts)} are "
        f"longer, such as {long[rows[0]]:.60}…"
    )
    left = {tuple(row) for row in tokenizer([long[i] for i in rows]).tolist()}
    if len(left) < len(rows):
        raise UserError(
            f"{which}; what is left of two is the same, so shorten the template, the sentence or "
            "the class name"
        )
    return f"{which}; they are cut"


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())

"""A composition as a TOML file.

lr = 0.002                       # any setting of `composition` but widths and towers

[image]
adapter = [8, 8, 0, 0, 4, …]     # one width for each block, or one number for all
lora = 2
vpt = 0                          # absent, as what is left out

[text]
lora = [0, 0, 2, …]
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cache.errors import UserError, unknown
from cache.files.atomic import replacing
from cache.files.toml_table import parse_toml
from fewshot.endtoend.methods.composition import PRIMITIVES, Composition, primitives, with_towers


def read_composition(path: Path) -> dict[str, Any]:
    """Settings of `composition` that the file sets; every width is among them.

    Raises:
        UserError: No such file, no TOML, an unknown tower, primitive or setting, or no widths.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a composition file") from None
    outer = parse_toml(content, str(path)).content
    tables = {name: value for name, value in outer.items() if isinstance(value, dict)}
    settings: dict[str, Any] = {name: str(v) for name, v in outer.items() if name not in tables}
    for name in settings:
        if name in PRIMITIVES:
            raise UserError(
                f"{path}: {name}: expected a table of widths, got {settings[name]!r:.80}"
            )
        if name in ("towers", *primitives()):
            raise UserError(f"{path}: {name} follows from the tables [image] and [text]; remove it")
    widths = {}
    for tower, table in tables.items():
        if tower not in PRIMITIVES:
            raise unknown(f"tower in {path}", tower, PRIMITIVES)
        for primitive, given in table.items():
            if primitive not in PRIMITIVES[tower]:
                raise unknown(f"primitive of [{tower}] in {path}", primitive, PRIMITIVES[tower])
            widths[f"{tower}_{primitive}"] = _widths(path, tower, primitive, given)
    try:
        return settings | with_towers(widths)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_composition(path: Path, composition: Composition, about: str) -> None:
    """Write the file, whole or not at all.

    Args:
        path: Of the file.
        composition: With one width, or one for each block, of each primitive.
        about: A line on where it is from.
    """
    usual = asdict(Composition())
    lines = [f"# {about}"]
    for name, value in asdict(composition).items():
        if name not in ("towers", "seed", *primitives()) and value != usual[name]:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    for tower, kinds in PRIMITIVES.items():
        widths = {kind: composition.widths(f"{tower}_{kind}") for kind in kinds}
        if any(map(any, widths.values())):
            lines += ["", f"[{tower}]", *(f"{kind} = {list(of)}" for kind, of in widths.items())]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _widths(path: Path, tower: str, primitive: str, given: object) -> str:
    """A width, or a list of them, as the text of a setting."""
    numbers = given if isinstance(given, list) else [given]
    if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
        raise UserError(
            f"{path}: {tower}.{primitive}: expected a width, 0 or more, or a list of one for each "
            f"block, got {given!r:.80}"
        )
    return ",".join(map(str, numbers))

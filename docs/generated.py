"""What the pages take from the program itself: commands, exported names, settings of methods.

A line `<!-- commands -->`, `<!-- names -->` or `<!-- settings NAME -->` stands for it in a page.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import typer

import fewshot
from cli import app as program
from fewshot.commands.examples import EXAMPLES
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.methods import METHODS
from fewshot.settings import explanations

EVERY: dict[str, type[Any]] = {**METHODS, **TRAINED}


def fill(app: object, page: str, source: list[str]) -> None:
    """Replace the lines of one page that stand for something; Sphinx calls it."""
    for placeholder, lines in (("<!-- commands -->", commands), ("<!-- names -->", names)):
        if placeholder in source[0]:
            source[0] = source[0].replace(placeholder, "\n".join(lines()))
    line = re.compile(r"^<!-- settings (\S+) -->$", re.MULTILINE)
    source[0] = line.sub(lambda found: settings(found[1]), source[0])


def of_scikit_learn(
    app: object, kind: str, name: str, thing: object, skip: bool, options: object
) -> bool | None:
    """True for what scikit-learn adds to every estimator, which it describes itself."""
    return True if name.endswith("_request") else None


def names() -> Iterator[str]:
    """Autodoc's directives for all that the package exports but methods, which have pages."""
    for name in sorted(fewshot.__all__, key=str.lower):
        thing = getattr(fewshot, name)
        if callable(thing) and thing not in EVERY.values():
            kind = "class" if inspect.isclass(thing) else "function"
            yield f".. auto{kind}:: fewshot.{name}" + "\n   :members:" * (kind == "class") + "\n"


def commands() -> Iterator[str]:
    """Markdown of every command: usage, what it does, and its options in a table."""
    group: Any = typer.main.get_command(program)
    for name, command in sorted(group.commands.items()):
        context = command.make_context(f"fewshot {name}", [], resilient_parsing=True)
        usage = " ".join(context.get_usage().removeprefix("Usage: ").split())
        help_text = _escaped(inspect.cleandoc(command.help))
        yield f"\n## `{name}`\n\n```text\n{usage}\n```\n\n{help_text}\n"
        examples = "\n".join(EXAMPLES[name])
        records = [parameter.get_help_record(context) for parameter in command.params]
        yield table(("option", "what it is"), [(f"`{r[0]}`", r[1]) for r in records if r])
        yield f"\n```text\n{examples}\n```\n"


def settings(name: str) -> str:
    """Markdown of a method's settings: what each is, its default, and what tuning tries."""
    method = EVERY[name]
    about = explanations(method)
    grid = method.grid
    rows = [
        (
            f"`{field.name}`",
            about.get(field.name, "").removesuffix("."),
            f"`{field.default}`" if field.default != "" else "empty",
            _tried(grid.get(field.name, ())),
        )
        for field in fields(method)
    ]
    header = ("setting", "what it is", "default", "tuning tries")
    return table(header, rows) if grid else table(header[:3], [row[:3] for row in rows])


def _tried(values: Sequence[object]) -> str:
    """The values of a grid; a method that tunes itself has one alone, the rule it goes on from."""
    return "any value" if len(values) == 1 else ", ".join(map(str, values))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with a class by which a narrow screen shows its rows one below another."""
    lines = [header, ("---",) * len(header), *rows]
    cells = [[_escaped(cell).replace("|", r"\|") for cell in line] for line in lines]
    body = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    return f"```{{rst-class}} listed\n```\n\n{body}\n"


def _escaped(text: str) -> str:
    """The text with options as code, and nothing else that Markdown would take for markup."""

    def replaced(found: re.Match[str]) -> str:
        text = found[0]
        return text if text[0] == "`" else f"`{text}`" if text[0] == "-" else f"\\{text}"

    return re.sub(r"`[^`]*`|--[a-z][a-z-]*|[*<]", replaced, text)

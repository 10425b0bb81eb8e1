"""The layout of --help: options under titles, and examples at the end, as plain text.

Typer groups options only if it prints with rich, whose import alone doubles the time of --help.
"""

from typing import Any

from typer.core import TyperCommand

from fewshot.commands.examples import EXAMPLES

LONG = 10  # options; fewer need no groups


class HelpPage(TyperCommand):
    """A command whose options are grouped by their `rich_help_panel`, with its examples below."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write each group of options under its title."""
        groups: dict[str, list[tuple[str, str]]] = {}
        parameters = self.get_params(ctx)
        for parameter in parameters:
            record = parameter.get_help_record(ctx)
            title = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if len(parameters) > LONG:
                title = getattr(parameter, "rich_help_panel", None) or title
            if record is not None:
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, a line each."""
        with formatter.section("Examples"):
            for example in EXAMPLES[ctx.info_name]:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")

"""The command line: which commands there are, and how each of them ends.

Results go to stdout, progress and reports to stderr. What a user can fix is one line and exit
code 2; Ctrl-C is 130. Heavy imports wait until a command needs them.
"""

import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cache.errors import UserError, printable
from fewshot.commands import (
    bench_command,
    cache_command,
    demo_command,
    extract_command,
    fit_command,
    import_command,
    photo_commands,
    report_commands,
    search_command,
    serving_commands,
    show_commands,
    synthesize_command,
    train_command,
)
from fewshot.commands.help_page import HelpPage

# Threads that wait for one another should sleep, not spin: decoding images beside a running model
# is then several times faster. Set here because torch reads it once, when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTERRUPTED = 130

COMMANDS: dict[str, Callable[..., int | None]] = {
    "extract": extract_command.extract,
    "fit": fit_command.fit,
    "train": train_command.train,
    "search": search_command.search,
    "bench": bench_command.bench,
    "synthesize": synthesize_command.synthesize,
    "compare": report_commands.compare,
    "report": report_commands.report,
    "methods": show_commands.methods,
    "auto": photo_commands.auto,
    "teach": serving_commands.teach,
    "predict": photo_commands.predict,
    "serve": serving_commands.serve,
    "export": photo_commands.export,
    "import": import_command.import_,
    "cache": cache_command.cache,
    "inspect": show_commands.inspect,
    "verify": show_commands.verify,
    "datasets": show_commands.datasets,
    "doctor": show_commands.doctor,
    "demo": demo_command.demo,
}
# What Ctrl-C leaves behind; every other command starts over.
CONTINUES = {
    "extract": "the same command continues where it stopped",
    "bench": "the same command continues where it stopped",
    "train": "the same command with --resume continues from its last checkpoint",
    "search": "the same command continues where it stopped",
    "teach": "every label is kept, and the same command uses the features that are encoded",
    "auto": "a first answer stays; the same command uses the features that are encoded",
}
app = typer.Typer(
    name="fewshot",
    help="Few-shot adaptation of CLIP on cached features: encode once, fit in seconds.",
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
    rich_markup_mode=None,  # rich would double the time of --help, see HelpPage
)
for name, command in COMMANDS.items():
    app.command(name, cls=HelpPage)(command)


# Building the tree of commands takes longer than many of them, and a program may run several.
tree = functools.cache(typer.main.get_command)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("fewshot-clip"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Take the options that come before a command."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no name may fail in a terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    given = [_at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    command = next((word for word in given if word in COMMANDS), "")
    try:
        code = tree(app)(args=given or ["--help"], standalone_mode=False) or 0
    except UserError as error:
        return _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        # The reader of our output, such as `head`, has enough; nothing may be flushed to it.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # open until the process ends
        return 0
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        where = f" at {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror}{where}; fix this and run the same command again", 2)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own, of a class it keeps private
        if usage is None:
            from fewshot.parts.memory import memory_refused

            refused = memory_refused(error)
            if refused is None:
                raise
            return _fail(
                f"{refused}; use fewer images, smaller settings, or a machine with more memory", 2
            )
        problem = usage().rstrip(".").replace("Value error, ", "")  # pydantic's, within typer
        return _fail(f"{problem}; see {f'fewshot {command}'.rstrip()} --help", 2)
    if code == INTERRUPTED:
        return _fail(f"interrupted; {CONTINUES.get(command, 'the same command starts over')}", code)
    return int(code)


def _at_home(word: str) -> str:
    """A word with the home folder in place of `~`, which shells leave in `--store=~/features`."""
    return re.sub(r"^(--[\w-]+=)?(~(?=/|$))", lambda m: (m[1] or "") + str(Path.home()), word)


# Conditions of the machine, not of the program, that a user can change.
_ENVIRONMENT = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENOTDIR,
    errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO, errno.ENOLCK, errno.ESTALE,
    errno.ELOOP,
}  # fmt: skip


def _fail(message: str, code: int) -> int:
    print(f"fewshot: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())

"""The command line: which commands there are, and how each of them ends.

Results go to stdout, progress and reports to stderr. What a user can put right is one line and exit
code 2; Ctrl-C is 130. Heavy imports wait until a command needs them.
"""

import errno
import io
import os
import sys

import typer

from cache.errors import UserError, printable
from fewshot.commands import (
    bench_command,
    demo_command,
    extract_command,
    fit_command,
    photo_commands,
    report_commands,
    show_commands,
    train_command,
)

# Threads that wait for one another should sleep, not spin: decoding images beside a running model
# is then several times faster. Set here because torch reads it once, when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTERRUPTED = 130

app = typer.Typer(
    name="fewshot",
    help="Few-shot adaptation of CLIP on cached features: encode once, fit in seconds.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would take "[default: ...]" in a help text for markup
)
app.command("extract")(extract_command.extract)
app.command("fit")(fit_command.fit)
app.command("train")(train_command.train)
app.command("bench")(bench_command.bench)
app.command("compare")(report_commands.compare)
app.command("report")(report_commands.report)
app.command("methods")(show_commands.methods)
app.command("auto")(photo_commands.auto)
app.command("predict")(photo_commands.predict)
app.command("export")(photo_commands.export)
app.command("import")(extract_command.import_)
app.command("inspect")(show_commands.inspect)
app.command("verify")(show_commands.verify)
app.command("datasets")(show_commands.datasets)
app.command("doctor")(show_commands.doctor)
app.command("demo")(demo_command.demo)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no name may fail in a terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        given = sys.argv[1:] if arguments is None else arguments
        code = app(args=given or ["--help"], standalone_mode=False) or 0
    except UserError as error:
        return _complain(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit):  # the reader of our output, such as `head`, has enough;
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # typer then exits by itself
        return 0
    except OSError as error:
        if error.errno not in _SURROUNDINGS:
            raise
        where = f" at {error.filename}" if error.filename else ""
        return _complain(f"{error.strerror}{where}; mend that, and the same command goes on", 2)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own, of a class it keeps private
        if usage is None:
            raise
        return _complain(f"{usage().rstrip('.')}; see fewshot --help", 2)
    if code == INTERRUPTED:
        return _complain(
            "interrupted; the same command starts again, an extraction or a bench where it was",
            code,
        )
    return int(code)


_SURROUNDINGS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}


def _complain(message: str, code: int) -> int:
    print(f"fewshot: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())

"""CPU seconds of short commands, and the modules they load, beside `import torch`.

    python -m benchmarks.start_up

On the bundled digits store, in a temporary folder. Every line is the fastest of several processes,
which take turns, so that a busy machine slows all of them alike.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TORCH = "import torch"
COMMANDS = (
    "--help",
    "methods",
    "methods gda",
    "report runs",
    "compare gda nearest-mean",
    "fit gda --shots 4",
    "fit text-probe --shots 4",
)
RUN = """
import resource, sys
if sys.argv[1] == "import torch":
    import torch
else:
    import cli
    assert cli.main(sys.argv[1].split()) == 0
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, len(sys.modules), "torch" in sys.modules)
"""


def measured(what: str, folder: Path) -> tuple[float, int, bool]:
    """CPU seconds, modules, and whether torch is among them, of one process."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, what],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, modules, torch = done.stdout.splitlines()[-1].split()
    return float(seconds), int(modules), torch == "True"


def main() -> None:
    """Measure every command and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    os.environ.pop("FEWSHOT_STORE", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured("extract --dataset digits --model tiny", folder)
        for method in ("gda", "nearest-mean"):
            measured(f"fit {method} --shots 2 --save-predictions predictions", folder)
        lines = (TORCH, *COMMANDS)
        found = [[measured(line, folder) for line in lines] for _ in range(repeats)]
    print(f"{'':28}{'CPU s':>8}{'less torch':>12}{'modules':>9}")
    torch_alone = min(one[0][0] for one in found)
    for line, runs in zip(lines, zip(*found, strict=True), strict=True):
        seconds, modules, torch = min(runs)
        beyond = f"{seconds - torch_alone:.2f}" if torch else "no torch"
        print(f"{line:28}{seconds:8.2f}{beyond:>12}{modules:9}")


if __name__ == "__main__":
    main()

"""Check that this installation and its surroundings can do what the commands ask of them.

    installation   versions, torch beside torchvision, the encoder, whose modules are imported
    machine        processor, memory, CUDA, locks, encoding, the model hub
    folders        where stores, datasets and results lie; what killed runs left; damaged stores

Each check is a function that yields findings and leaves nothing on the disk.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from cache.datasets.resolving import data_root
from cache.location import default_root
from fewshot.doctor import folders, installation, machine
from fewshot.doctor.finding import Finding

__all__ = ["Finding", "checkup", "report"]

Check = Callable[[], Iterable[Finding]]


def checkup(store: Path | None = None, data: Path | None = None) -> list[Finding]:
    """The findings of every check; takes some ten seconds, since models are loaded and run.

    Args:
        store: The folder of stores; `$FEWSHOT_STORE` or `./features` without it.
        data: The folder of datasets; `$FEWSHOT_DATA` or `./data` without it.
    """
    root = store or default_root()
    checks: dict[str, Check] = {
        "versions": installation.versions,
        "torch pair": installation.torch_pair,
        "encoder": installation.encoder,
        "modules": installation.modules,
        "owners": installation.owners,
        "command": installation.command,
        "processor": machine.processor,
        "memory": machine.memory,
        "CUDA": machine.cuda,
        "file locks": machine.locks,
        "encoding": machine.encoding,
        "hub": machine.hub,
        "store root": partial(folders.stores_folder, root),
        "data root": partial(folders.data_folder, data_root(data)),
        "runs": partial(folders.runs_folder, Path("runs")),
        "leftovers": partial(folders.leftovers, root),
        "stores": partial(folders.stores, root),
        "synthesized": partial(folders.synthesized, root),
    }
    return [finding for name, check in checks.items() for finding in _guarded(name, check)]


def report(findings: Sequence[Finding]) -> str:
    """The findings for a terminal: a line each, its fix below it, and the count at the end."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:7}  {finding.name:{width}}  {finding.found}")
        if finding.fix:
            lines.append(f"{'':7}  {'':{width}}  fix: {finding.fix}")
    states = Counter(finding.state for finding in findings)
    counts = [f"{states[s]} {s}{'s' * (states[s] != 1)}" for s in ("problem", "warning")]
    return "\n".join([*lines, f"{counts[0]}, {counts[1]}"])


def _guarded(name: str, check: Check) -> Iterator[Finding]:
    """The check's findings, and one more where it failed."""
    try:
        yield from check()
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        yield Finding(
            name,
            "problem",
            f"could not be looked at: {type(error).__name__}: {reason}",
            "mend what it names; if nothing else here does, it is a bug to be reported",
        )

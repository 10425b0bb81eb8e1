"""Checks of what is installed: the versions, that they fit together, and that they are ours."""

import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fewshot.doctor.finding import Finding

DISTRIBUTION = "fewshot-clip"
MODULES = ("cache", "cli", "fewshot")
HOME = Path(__file__).resolve().parents[2]  # where the three lie beside one another
PATIENCE = 120  # seconds; an import from a slow network disk takes one of them


def versions() -> Iterator[Finding]:
    """Python and all that this distribution requires, against what its metadata require."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Finding(
            DISTRIBUTION,
            "problem",
            "not installed as a distribution, so nothing says what it requires",
            "pip install -e . in a checkout of it",
        )
        return
    yield Finding(DISTRIBUTION, "ok", f"{metadata.version(DISTRIBUTION)}, in {HOME}")
    python, wanted = platform.python_version(), metadata.metadata(DISTRIBUTION)["Requires-Python"]
    if python in SpecifierSet(wanted, prereleases=True):
        yield Finding("Python", "ok", python)
    else:
        fix = f"make a virtual environment with a Python {wanted}"
        yield Finding("Python", "problem", f"{python}, where {wanted} is required", fix)
    for requirement in map(Requirement, requirements):
        # An extra's requirement holds only where that extra is asked for.
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _required(requirement)


def _required(requirement: Requirement) -> Finding:
    wanted = requirement.specifier
    fix = f"pip install '{requirement.name}{wanted}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, "problem", f"not installed; {wanted} is required", fix)
    if not wanted.contains(version, prereleases=True):
        return Finding(requirement.name, "problem", f"{version}, where {wanted} is required", fix)
    return Finding(requirement.name, "ok", version)


def torch_pair() -> Iterator[Finding]:
    """Check torchvision's compiled part against torch's: a CPU-only wheel of one often fails.

    In a process of its own, in which a crash harms nobody.
    """
    command = [sys.executable, "-P", "-c", "import torchvision"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if result.returncode == 0:
        yield Finding("torch pair", "ok", "torchvision can be imported beside torch")
        return
    said = [f"exit code {result.returncode}", *result.stderr.strip().splitlines()][-1]
    yield Finding(
        "torch pair",
        "problem",
        f"torchvision cannot be imported beside torch: {said}",
        "pip install --force-reinstall torch torchvision, both at once and from one index",
    )


def encoder() -> Iterator[Finding]:
    """The whole chain from an image and a prompt to features, with the bundled tiny model.

    And whether its attention is of the module that end-to-end methods take apart.
    """
    import torch
    from PIL import Image
    from torch import nn

    from cache.models.loading import load

    tiny = load("tiny", device="cpu")
    pixels = tiny.preprocess.center(Image.new("RGB", (48, 32), "red"))
    features = torch.cat([tiny.encode_images(pixels[None]), tiny.encode_text(["a photo"])])
    if tuple(features.shape) != (2, tiny.dim) or not bool(torch.isfinite(features).all()):
        yield Finding(
            "encoder",
            "problem",
            "the tiny model's features of an image and a prompt are not finite numbers",
            "pip install --force-reinstall torch torchvision open_clip_torch",
        )
    else:
        yield Finding("encoder", "ok", "the tiny model encodes an image and a prompt")
    if any(isinstance(module, nn.MultiheadAttention) for module in tiny.model.modules()):
        yield Finding("attention", "ok", "open_clip's is what fewshot train takes apart")
    else:
        yield Finding(
            "attention",
            "problem",
            "this open_clip has another attention module than fewshot train takes apart",
            "pip install 'open_clip_torch<4'",
        )


def modules() -> Iterator[Finding]:
    """Check that our modules come from one place, and nothing in the working folder hides them.

    Python puts the working directory first for `python -m`, `python -c` and notebooks, though not
    for an installed command. A folder without `__init__.py` hides nothing.
    """
    hidden = False
    for name in MODULES:
        spec = find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or HOME not in origin.parents:
            hidden = True
            yield Finding(
                "modules",
                "problem",
                f"Python takes {name} from {origin}, not from {HOME}",
                "rename that, or take its folder off PYTHONPATH",
            )
        for local in (Path.cwd() / f"{name}.py", Path.cwd() / name / "__init__.py"):
            if local.is_file() and HOME not in local.resolve().parents:
                hidden = True
                yield Finding(
                    "modules",
                    "warning",
                    f"{local} hides the installed {name} from python -m and notebooks started here",
                    "rename it, or work in another folder",
                )
    if not hidden:
        yield Finding("modules", "ok", f"{', '.join(MODULES)} come from {HOME}")


def owners() -> Iterator[Finding]:
    """Check that no other distribution has modules of our names in this environment."""
    by_module = metadata.packages_distributions()
    others = {name: sorted(set(by_module.get(name, ())) - {DISTRIBUTION}) for name in MODULES}
    for name, distributions in others.items():
        if distributions:
            yield Finding(
                "owners",
                "problem",
                f"{' and '.join(distributions)} has a module {name} in this environment too",
                f"pip uninstall {' '.join(distributions)}, or give {DISTRIBUTION} an environment "
                "of its own",
            )
    if not any(others.values()):
        yield Finding("owners", "ok", "no other distribution has modules of our names")


def command() -> Iterator[Finding]:
    """Check that `fewshot` in the shell is this environment's."""
    here, found = Path(sysconfig.get_path("scripts")), shutil.which("fewshot")
    if found is None:
        fix = f"activate the environment, or call {here / 'fewshot'}"
        yield Finding("command", "warning", "no fewshot on PATH", fix)
    elif Path(found).parent.resolve() != here.resolve():
        fix = f"activate the environment you mean; this one's is {here / 'fewshot'}"
        yield Finding("command", "warning", f"on PATH is another environment's, {found}", fix)
    else:
        yield Finding("command", "ok", found)

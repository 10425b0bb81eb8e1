"""Checks of the machine: processor, memory, CUDA, file locks, encoding, the model hub."""

import codecs
import locale
import os
import shutil
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from fewshot.doctor.finding import Finding
from fewshot.doctor.folders import writable
from fewshot.parts.memory import GIB, available_memory

ENOUGH = 2 * GIB  # bytes to load ViT-B/16 and encode with it
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WEIGHTS = (".safetensors", ".bin", ".pt", ".npz")


def processor(cores: int | None = None) -> Iterator[Finding]:
    """Compare torch's threads with the cores that this process may use.

    Args:
        cores: Number of these cores; without it, as the system counts them.
    """
    threads, cores = torch.get_num_threads(), cores or available_cores()
    found = f"torch encodes with {threads} of {cores} cores; small tasks are trained on one"
    if threads == 1 < cores:
        limits = [name for name in THREAD_LIMITS if name in os.environ]
        fix = f"unset {' '.join(limits)}" if limits else f"export OMP_NUM_THREADS={cores}"
        yield Finding("processor", "warning", found, fix)
    elif threads > cores:
        yield Finding(
            "processor",
            "warning",
            f"torch encodes with {threads} threads on {cores} cores, which wait for one another",
            f"export OMP_NUM_THREADS={cores}",
        )
    else:
        yield Finding("processor", "ok", found)


def available_cores() -> int:
    """Count the cores that this process may use, where the system says, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> Iterator[Finding]:
    """Memory that can be had now."""
    available = available_memory()
    if available is None:
        yield Finding("memory", "ok", "this system does not tell")
    elif available < ENOUGH:
        fix = "close other programs, or extract with a smaller --batch-size"
        yield Finding("memory", "warning", f"{available / GIB:.1f} GiB available", fix)
    else:
        yield Finding("memory", "ok", f"{available / GIB:.1f} GiB available")


def cuda() -> Iterator[Finding]:
    """The CUDA devices; where there are none, whether there should be."""
    with warnings.catch_warnings(record=True) as said:  # torch warns of a driver that is too old
        warnings.simplefilter("always")
        seen = torch.cuda.is_available()
    if seen:
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            found = (
                f"{torch.cuda.get_device_name(i)}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
            )
            yield Finding("CUDA", "ok", found)
    elif os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        yield Finding("CUDA", "ok", "hidden by an empty CUDA_VISIBLE_DEVICES")
    elif not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        found = "no device; the CPU computes, in fp32 (fp16 is slower there)"
        yield Finding("CUDA", "ok", found)
    elif torch.version.cuda is None:
        yield Finding(
            "CUDA",
            "warning",
            f"there is an NVIDIA device, but torch {torch.__version__} was built without CUDA",
            "pip install --force-reinstall torch torchvision, both from an index with CUDA",
        )
    else:
        reason = f" ({str(said[0].message).splitlines()[0]})" if said else ""
        yield Finding(
            "CUDA",
            "warning",
            f"there is an NVIDIA device, but torch cannot use it{reason}",
            f"install an NVIDIA driver for CUDA {torch.version.cuda}, or a torch for an older CUDA",
        )


def locks() -> Iterator[Finding]:
    """Check that HDF5 is not set to lock the files it reads, which stores are opened without."""
    setting = os.environ.get("HDF5_USE_FILE_LOCKING")
    if setting in ("TRUE", "1", "BEST_EFFORT"):
        yield Finding(
            "file locks",
            "warning",
            f"HDF5_USE_FILE_LOCKING is {setting}; a store that another program has locked, or on "
            "a disk without locks, then looks damaged",
            "unset HDF5_USE_FILE_LOCKING",
        )
    else:
        yield Finding("file locks", "ok", "HDF5 takes none to read a store")


def encoding() -> Iterator[Finding]:
    """Check that text is UTF-8 everywhere."""
    used = {
        "the locale": locale.getencoding(),
        "file names": sys.getfilesystemencoding(),
        "the output": getattr(sys.stdout, "encoding", None) or "utf-8",
    }
    others = {what: code for what, code in used.items() if codecs.lookup(code).name != "utf-8"}
    if others:
        found = ", ".join(f"{what} is in {code}" for what, code in others.items())
        yield Finding("encoding", "warning", f"{found}, not UTF-8", "export PYTHONUTF8=1")
    else:
        yield Finding("encoding", "ok", "UTF-8")


def hub() -> Iterator[Finding]:
    """The cache of the model hub, which CLIPs are in it, and whether more can be had."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    fix = "set HF_HOME to a folder that can be written and has room"
    yield writable("hub cache", folder, fix)
    models = _cached_clips(folder)
    here = ", ".join(models) or "no CLIP"
    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    still = "tiny, local-dir:PATH and what is in the cache work without it"
    if constants.HF_HUB_OFFLINE:
        found = f"switched off by HF_HUB_OFFLINE; the cache holds {here}"
        yield Finding("hub", "warning", found, f"unset HF_HUB_OFFLINE; {still}")
    elif not _resolves(host):
        found = f"{host} cannot be found from here; the cache holds {here}"
        fix = f"connect once, or copy a filled cache here and set HF_HOME; {still}"
        yield Finding("hub", "warning", found, fix)
    else:
        yield Finding("hub", "ok", f"{host}; the cache holds {here}")


def _resolves(host: str) -> bool:
    """True if the name leads somewhere; a proxy, where there is one, looks it up elsewhere."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _cached_clips(folder: Path) -> list[str]:
    """Repositories in the cache that have weights and CLIP in their names, the largest first."""
    from huggingface_hub import scan_cache_dir

    if not folder.is_dir():
        return []
    return [
        repo.repo_id
        for repo in sorted(scan_cache_dir(folder).repos, key=lambda repo: -repo.size_on_disk)
        if "clip" in repo.repo_id.lower()
        and any(f.file_name.endswith(WEIGHTS) for r in repo.revisions for f in r.files)
    ]

"""A frozen CLIP by its name, ready to run.

The only module of stage 1 that imports open_clip, and only when a model is loaded: the import takes
seconds. Models are named as open_clip names them:

    ViT-B-16/openai        an architecture and a tag of its weights
    hf-hub:org/repository  a model on the Hugging Face hub
    local-dir:PATH         a directory holding open_clip_config.json and the weights
    tiny                   the small model that ships with this package
"""

import contextlib
import logging
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from cache.encoder import PRECISIONS, Encoder, wrap
from cache.errors import UserError, unknown
from cache.location import model_name

TINY = Path(__file__).parent / "tiny"


def load(
    name: str, *, device: str = "auto", precision: str = "auto", resize: str | None = None
) -> Encoder:
    """The encoder of that name, ready to run.

    Args:
        name: One of the forms above.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        precision: "auto" (float32 on a CPU, fp16 autocast on CUDA), "fp32", "bf16" or "fp16".
        resize: "shorter" (short side to the model's size, then a center crop), "squash" (both
            sides), or None for what the model was trained with.

    Raises:
        UserError: Unknown model or tag, no CUDA device, or weights that are neither here nor
            to be had.
    """
    name = model_name(name)
    where = _device(device)
    if precision == "auto":
        precision = "fp16" if where.type == "cuda" else "fp32"
    if precision not in PRECISIONS:
        raise unknown("precision", precision, ["auto", *PRECISIONS])
    source, arch, tag = _parse(name)
    model, quick_gelu = _create(source, arch, tag)
    import open_clip

    tokenizer = open_clip.get_tokenizer(source)
    return wrap(
        model, tokenizer, where, precision, resize, name=name, arch=arch, tag=tag,
        quick_gelu=quick_gelu,
    )  # fmt: skip


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _parse(name: str) -> tuple[str, str, str]:
    """What open_clip is asked for, the architecture's name, and the weights' tag."""
    if name == "tiny":
        return f"local-dir:{TINY}", "tiny", ""
    if name.startswith(("hf-hub:", "local-dir:")):
        return name, name.split(":", 1)[1], ""
    import open_clip

    arch, _, tag = name.rpartition("/")
    if name.replace("/", "-") in open_clip.list_models():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name.replace("/", "-")))
        raise UserError(f"{name} names no weights; say {name}/TAG with one of: {known}")
    arch = arch.replace("/", "-")
    if arch not in open_clip.list_models():
        raise unknown("model", arch or tag, ["tiny", *open_clip.list_models()])
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if tag not in tags:
        raise unknown(f"weights for {arch}", tag, tags)
    return arch, arch, tag


def _create(source: str, arch: str, tag: str) -> tuple[Any, bool]:
    """The model with its weights, and whether it computes QuickGELU."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    # open_clip builds `ViT-B-16` with GELU and only warns that OpenAI's weights want QuickGELU.
    quick_gelu = bool(tag and get_pretrained_cfg(arch, tag).get("quick_gelu", False))
    if not source.startswith("local-dir:"):
        _stay_offline_if_cut_off()
    try:
        with warnings.catch_warnings(), _no_logging():
            warnings.filterwarnings("error", "QuickGELU mismatch")
            model = open_clip.create_model(
                source, tag or None, force_quick_gelu=quick_gelu, require_pretrained=True
            )
    except UserWarning:
        plain = arch.removesuffix("-quickgelu")
        raise UserError(
            f"{arch}/{tag} was trained with GELU, not QuickGELU; use {plain}/{tag}"
        ) from None
    except Exception as error:
        raise _unavailable(source, tag, error) from error
    return model, quick_gelu or any("QuickGELU" in type(m).__name__ for m in model.modules())


def _stay_offline_if_cut_off() -> None:
    """Have the hub client look only at its cache where the hub's name does not even resolve.

    Left alone it tries eleven times, for three quarters of a minute, with a warning for each.
    """
    from huggingface_hub import constants

    if getproxies():  # then names are resolved elsewhere
        return
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True


@contextlib.contextmanager
def _no_logging() -> Iterator[None]:
    """Keep open_clip's log lines back: what goes wrong is raised, and we say it in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _unavailable(source: str, tag: str, error: Exception) -> UserError:
    from huggingface_hub import constants

    reason = (str(error).strip() or repr(error)).splitlines()[0]
    if source.startswith("local-dir:"):
        return UserError(
            f"no model in {source.removeprefix('local-dir:')}: {reason}; expected "
            "open_clip_config.json and the weights, such as open_clip_model.safetensors"
        )
    if constants.HF_HUB_OFFLINE:
        reason = "the model hub is out of reach, and its cache here does not hold them"
    name = f"{source}/{tag}" if tag else source
    return UserError(
        f"cannot get the weights of {name} ({reason}); connect once, or copy a filled hub cache "
        "here and set HF_HOME, or point --model local-dir:PATH at a download, or use --model tiny"
    )

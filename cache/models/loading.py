"""A frozen CLIP by its name, ready to run.

open_clip and timm are imported only when a model is loaded: that takes seconds. Models are named as
open_clip names them, and image towers as timm does:

    ViT-B-16/openai        an architecture and a tag of its weights
    hf-hub:org/repository  a model on the Hugging Face hub
    local-dir:PATH         a directory holding open_clip_config.json and the weights
    ARCH@PATH              an architecture and a file of weights, such as an own fine-tune's
    timm:NAME              an image tower without text; timm:NAME@PATH with weights from a file
    tiny                   the small model that ships with this package
"""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.errors import UserError, printable, unknown
from cache.location import IMAGE_ONLY, model_name, pair_names, weights_file
from cache.models.encoder import PRECISIONS, Encoder, wrap
from cache.models.image_only import ImageOnly, create, no_text
from cache.models.offline import stay_offline_if_cut_off
from cache.models.weights_file import build

TINY = Path(__file__).parents[1] / "tiny"
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
HUGGING_FACE = ("hf_model_name", "hf_tokenizer_name")  # of open_clip's configs: need transformers


def load(
    name: str,
    *,
    device: str = "auto",
    precision: str = "auto",
    resize: str | None = None,
    fast_images: bool = False,
) -> Encoder:
    """The encoder of that name, ready to run.

    Args:
        name: One of the forms above.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "mps" or "xpu".
        precision: "auto" (fp16 autocast on CUDA, else float32), "fp32", "bf16" or "fp16".
        resize: "shorter" (short side to the model's size, then a center crop), "squash" (both
            sides), or None for what the model was trained with.
        fast_images: Decode and scale by `fast_images`: two to three times faster, to 1 of 255.

    Raises:
        UserError: Unknown model or tag, no such device, a package that is missing, or weights
            that are neither here nor to be had, or are another architecture's.
    """
    name = model_name(name)
    if pair_names(name):
        raise UserError(
            f"{name} is a pair of models, and one model is needed here; name one of the two"
        )
    where = _device(device)
    if precision == "auto":
        precision = "fp16" if where.type == "cuda" else "fp32"
    if where.type == "cuda":  # else its convolutions round float32 to TF32, 10 bits of 23
        torch.backends.cudnn.allow_tf32 = False
    if precision not in PRECISIONS:
        raise unknown("precision", precision, ["auto", *PRECISIONS])
    if name.startswith(IMAGE_ONLY):
        model: Any = _image_only(name)
        arch, _, tag = weights_file(name)[0].removeprefix(IMAGE_ONLY).partition(".")
        return wrap(
            model, no_text(name), where, precision, resize, fast_images=fast_images, name=name,
            arch=arch, tag=tag,
        )  # fmt: skip
    file = weights_file(name)[1]
    source, arch, tag = _parse(name)
    tokenizer = _tokenizer(name, source)  # what it lacks is said before weights are fetched
    if file is None:
        model, quick_gelu = _create(source, arch, tag)
    else:
        with _no_logging():
            model = build(arch, file)
        quick_gelu = _computes_quick_gelu(model)
    return wrap(
        model, tokenizer, where, precision, resize, fast_images=fast_images, name=name, arch=arch,
        tag=tag, quick_gelu=quick_gelu,
    )  # fmt: skip


def _device(name: str) -> torch.device:
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    home: Any = torch.backends.mps if name == "mps" else getattr(torch, name, None)
    if name != "cpu" and (home is None or not home.is_available()):  # torch 2.2 has no XPU
        raise UserError(
            f"--device {name}: torch sees no {name.upper()} device here; use --device cpu"
        )
    return torch.device(name)


def _parse(name: str) -> tuple[str, str, str]:
    """The name that open_clip is asked for, the architecture's, and the weights' tag."""
    if name == "tiny":
        return f"local-dir:{TINY}", "tiny", ""
    if name.startswith(("hf-hub:", "local-dir:")):
        return name, name.split(":", 1)[1], ""
    import open_clip

    arch, file = weights_file(name)
    if file is not None:
        arch = arch.replace("/", "-")
        if arch not in open_clip.list_models():
            raise unknown("architecture", arch, open_clip.list_models())
        return arch, arch, ""
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


def _tokenizer(name: str, source: str) -> Callable[[list[str]], Tensor]:
    """open_clip's tokenizer of the model."""
    import open_clip

    if not source.startswith("local-dir:"):
        stay_offline_if_cut_off()
    try:
        text: dict[str, Any] = (open_clip.get_model_config(source) or {}).get("text_cfg", {})
    except Exception as error:
        raise _unavailable(source, "", error) from error
    if not any(map(text.get, HUGGING_FACE)):
        return open_clip.get_tokenizer(source)  # type: ignore[no-any-return]  # it has no types
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            f"{name} reads text through transformers, and that is not here; install it with: "
            "pip install 'fewshot-clip[hf]' (in a checkout: pip install '.[hf]')"
        )
    try:
        with _no_logging():
            return open_clip.get_tokenizer(source)  # type: ignore[no-any-return]  # it has no types
    except Exception as error:
        way = "connect once, or set HF_HOME to a filled hub cache"
        if source.startswith("local-dir:"):
            way = "copy its files, such as tokenizer.json, into that folder"
        raise UserError(f"cannot get the tokenizer of {name} ({_reason(error)}); {way}") from error


def _image_only(name: str) -> ImageOnly:
    plain, file = weights_file(name)
    if file is None:
        stay_offline_if_cut_off()
    try:
        with _no_logging():
            return create(plain, file)
    except UserError:
        raise
    except Exception as error:
        raise _unavailable(name, "", error) from error


def _computes_quick_gelu(model: Any) -> bool:
    return any("QuickGELU" in type(module).__name__ for module in model.modules())


def _create(source: str, arch: str, tag: str) -> tuple[Any, bool]:
    """The model with its weights, and whether it computes QuickGELU."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    # open_clip builds `ViT-B-16` with GELU and only warns that OpenAI's weights want QuickGELU.
    quick_gelu = bool(tag and get_pretrained_cfg(arch, tag).get("quick_gelu", False))
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
    return model, quick_gelu or _computes_quick_gelu(model)


@contextlib.contextmanager
def _no_logging() -> Iterator[None]:
    """Keep open_clip's log lines back: what goes wrong is raised, and we say it in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _reason(error: Exception) -> str:
    return printable((str(error).strip() or repr(error)).splitlines()[0])


def _unavailable(source: str, tag: str, error: Exception) -> UserError:
    from huggingface_hub import constants

    reason = _reason(error)
    if source.startswith("local-dir:"):
        return UserError(
            f"no model in {source.removeprefix('local-dir:')}: {reason}; expected "
            "open_clip_config.json and the weights, such as open_clip_model.safetensors"
        )
    if constants.HF_HUB_OFFLINE:
        reason = "the model hub is out of reach, and its cache here does not hold them"
    name = f"{source}/{tag}" if tag else source
    place = f"{source}@FILE" if source.startswith(IMAGE_ONLY) else "local-dir:PATH"
    return UserError(
        f"cannot get the weights of {name} ({reason}); connect once, or copy a filled hub cache "
        f"here and set HF_HOME, or point --model {place} at a download, or use --model tiny"
    )

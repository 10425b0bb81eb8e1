"""A frozen CLIP: images and prompts in, raw features out.

The only module of stage 1 that imports open_clip, and only when a model is loaded: the import takes
seconds. Models are named as open_clip names them:

    ViT-B-16/openai        an architecture and a tag of its weights
    hf-hub:org/repository  a model on the Hugging Face hub
    local-dir:PATH         a directory holding open_clip_config.json and the weights
    tiny                   the small model that ships with this package
"""

import contextlib
import hashlib
import logging
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn

from cache.errors import UserError, unknown
from cache.images import Preprocess
from cache.location import model_name

TINY = Path(__file__).parent / "tiny"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Encoder:
    """Both frozen towers of one CLIP, with everything that identifies them.

    Attributes:
        model: open_clip's module, which is untyped; in eval mode, float32 weights.
        tokenizer: Prompts to (P, L) token ids.
        preprocess: PIL image to (3, H, W), as the model was trained to see it.
        device: Where the towers run.
        precision: "fp32", or the autocast type "bf16" or "fp16".
        identity: What a store records of the model: name, arch, tag, weights digest, quick_gelu,
            logit_scale, dim, image_size.
    """

    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    preprocess: Preprocess
    device: torch.device
    precision: str
    identity: Mapping[str, Any]

    @property
    def dim(self) -> int:
        """D, the width of the joint image-text space."""
        return int(self.identity["dim"])

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Unnormalized image features (B, D), float32 on the CPU, of pixels (B, 3, H, W)."""
        with self._autocast():
            features: Tensor = self.model.encode_image(pixels.to(self.device, non_blocking=True))
        return features.float().cpu()

    @property
    def text_projection(self) -> Tensor | None:
        """(W, D) float32 on the CPU, the matrix that ends the text tower; None if it has none."""
        projection = _projection(self.model)
        return None if projection is None else projection.detach().float().cpu()

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Unnormalized text features (P, D), float32 on the CPU, of P prompts."""
        return self.encode_text_pooled(prompts)[0]

    @torch.inference_mode()
    def encode_text_pooled(self, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        """As `encode_text`, with what the tower made of them before its projection.

        Returns:
            Features (P, D) and pooled (P, W), `pooled @ text_projection` being the features; no
            pooled where the tower does not end in such a matrix.
        """
        tokens = self.tokenizer(prompts).to(self.device)
        with self._autocast():
            features, pooled = _encode_tokens(self.model, tokens)
        return features.float().cpu(), None if pooled is None else pooled.float().cpu()

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        enabled = self.precision != "fp32"
        with torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=enabled):
            yield


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


def wrap(
    model: Any,
    tokenizer: Callable[[list[str]], Tensor],
    device: torch.device,
    precision: str = "fp32",
    resize: str | None = None,
    *,
    name: str,
    arch: str,
    tag: str = "",
    quick_gelu: bool = False,
) -> Encoder:
    """An encoder around an open_clip model that is already built."""
    model = model.eval().requires_grad_(False)
    preprocess = Preprocess.of(model, resize)
    weights = _digest(model)
    with torch.inference_mode():
        dim = int(_encode_tokens(model, tokenizer(["a"]))[0].shape[1])
    identity = {
        "name": name,
        "arch": arch,
        "tag": tag,
        "weights": weights,
        "quick_gelu": quick_gelu,
        "logit_scale": float(model.logit_scale.detach().exp()),
        "dim": dim,
        "image_size": preprocess.size,
    }
    return Encoder(model.to(device), tokenizer, preprocess, device, precision, identity)


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


def _digest(model: Any) -> str:
    """SHA-256 over every weight's name and bytes, in name order."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.contiguous().cpu().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _encode_tokens(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """Text features (P, D) of tokens (P, L), and (P, W) what `_projection` made them of, if it did.

    Padding is cut off where that is exact: CLIP's text tower is causal and pools at the end-of-text
    token, so positions after the last one of the batch change nothing; leaving them out is about
    six times faster.
    """
    if not _is_clips(model):
        return model.encode_text(tokens), None
    causal = model.attn_mask
    end = tokens.argmax(dim=1)  # end-of-text has the highest id
    length = int(end.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=causal[:length, :length]))
    pooled: Tensor = x[torch.arange(len(x), device=x.device), end]
    last = model.text_projection
    if last is None:
        return pooled, None
    features: Tensor = last(pooled) if isinstance(last, nn.Module) else pooled @ last
    return features, None if _projection(model) is None else pooled


def _is_clips(model: Any) -> bool:
    """Whether the text tower is CLIP's own, whose parts open_clip keeps on the model itself."""
    causal = getattr(model, "attn_mask", None)
    return causal is not None and getattr(model, "text_pool_type", None) == "argmax"


def _projection(model: Any) -> Tensor | None:
    """The (W, D) matrix that alone takes pooled text into the joint space, if one does."""
    last: Any = model.text_projection if _is_clips(model) else None
    if isinstance(last, nn.Linear):
        return last.weight.T if getattr(last, "bias", None) is None else None
    return last if isinstance(last, Tensor) else None

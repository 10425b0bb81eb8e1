"""A frozen CLIP: images and prompts in, raw features out."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cache.arrays.image_tower import ImageTower
from cache.images.preprocessing import Preprocess
from cache.models.image_only import ImageOnly

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
            logit_scale, dim, image_size; of one trained by a sigmoid loss, that and its bias.
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

    @property
    def reads_text(self) -> bool:
        """False for a model without a text tower."""
        return hasattr(self.model, "encode_text")

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Unnormalized image features (B, D), float32 on the CPU, of pixels (B, 3, H, W).

        Crops of uint8 are standardized here, on the device: a quarter of the bytes to copy.
        """
        pixels = self._standardized(pixels)
        with self._autocast():
            features: Tensor = self.model.encode_image(pixels)
        return features.float().cpu()

    @torch.inference_mode()
    def encode_images_pooled(self, pixels: Tensor) -> Tensor:
        """(B, D + w): the features of `encode_images` to the bit, and pooled images beside them.

        Pooled images (B, w) are what the layers of `image_tower` make the features of.
        """
        pixels = self._standardized(pixels)
        visual = self.model.visual
        projection, norm = visual.proj, visual.ln_post
        visual.proj = None  # the tower then ends before it
        try:
            with self._autocast():
                before = self.model.encode_image(pixels)
                features = before @ projection
        finally:
            visual.proj = projection
        pooled = (before.float() - norm.bias) / norm.weight
        pooled = pooled.where(norm.weight != 0, 0.0)  # there the feature does not depend on it
        return torch.cat([features.float(), pooled], dim=1).cpu()

    @property
    def image_tower(self) -> ImageTower | None:
        """The layers that end the image tower; None where it ends otherwise."""
        visual = self.model.visual
        norm, projection = getattr(visual, "ln_post", None), getattr(visual, "proj", None)
        if not (isinstance(norm, nn.LayerNorm) and isinstance(projection, Tensor)):
            return None
        scale, shift, matrix = (
            tensor.detach().float().cpu().numpy() for tensor in (norm.weight, norm.bias, projection)
        )
        return ImageTower(scale, shift, matrix)

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

    def text_lengths(self, prompts: Sequence[str]) -> list[int]:
        """The number of positions that the text tower runs on for each prompt alone.

        A prompt's feature depends to the last bit on it, so on the other prompts only if these are
        longer.
        """
        if not prompts:
            return []
        tokens = self.tokenizer(list(prompts))
        if not _is_clips(self.model):
            return [tokens.shape[1]] * len(tokens)
        return [_length(end, tokens.shape[1]) for end in tokens.argmax(dim=1).tolist()]

    def _standardized(self, pixels: Tensor) -> Tensor:
        """On the device, float32."""
        pixels = pixels.to(self.device, non_blocking=True)
        return self.preprocess.standardize(pixels) if pixels.dtype == torch.uint8 else pixels

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        enabled = self.precision != "fp32"
        with torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=enabled):
            yield


def wrap(
    model: Any,
    tokenizer: Callable[[list[str]], Tensor],
    device: torch.device,
    precision: str = "fp32",
    resize: str | None = None,
    *,
    fast_images: bool = False,
    name: str,
    arch: str,
    tag: str = "",
    quick_gelu: bool = False,
) -> Encoder:
    """An encoder around a model that is already built: open_clip's, or an `ImageOnly`."""
    model = model.eval().requires_grad_(False)
    preprocess = Preprocess.of(model, resize, fast=fast_images)
    weights = _digest(model)
    if isinstance(model, ImageOnly):
        dim = model.dim
    else:
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
    bias = getattr(model, "logit_bias", None)
    if bias is not None:  # SigLIP's: sigmoid(logit_scale cosine + logit_bias)
        identity |= {"loss": "sigmoid", "logit_bias": float(bias.detach())}
    return Encoder(model.to(device), tokenizer, preprocess, device, precision, identity)


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
    length = _length(int(end.max()), tokens.shape[1])
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=causal[:length, :length]))
    pooled: Tensor = x[torch.arange(len(x), device=x.device), end]
    last = model.text_projection
    if last is None:
        return pooled, None
    features: Tensor = last(pooled) if isinstance(last, nn.Module) else pooled @ last
    return features, None if _projection(model) is None else pooled


def _length(end: int, context: int) -> int:
    """Positions to run on for a text that ends at `end`: few lengths, so that batches are full."""
    return min(-(-(end + 1) // 8) * 8, context)


def _is_clips(model: Any) -> bool:
    """True if the text tower is CLIP's own, whose parts open_clip keeps on the model itself."""
    causal = getattr(model, "attn_mask", None)
    return causal is not None and getattr(model, "text_pool_type", None) == "argmax"


def _projection(model: Any) -> Tensor | None:
    """The (W, D) matrix that alone takes pooled text into the joint space, if one does."""
    last: Any = model.text_projection if _is_clips(model) else None
    if isinstance(last, nn.Linear):
        return last.weight.T if getattr(last, "bias", None) is None else None
    return last if isinstance(last, Tensor) else None

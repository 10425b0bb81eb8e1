"""The file of an adapter: a sealed one, but format 1 has a digest over the tensors alone."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from cache.errors import UserError
from fewshot.adapters.header import KEY
from fewshot.sealed_file import card_of, is_whole, write_sealed

FORMAT = 3
LABELS = 4  # of adapters for images that may have several labels
READ = (1, 2, FORMAT, LABELS)


def write_adapter(path: Path, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the file whole or not at all, in the earliest format that has all of it."""
    version = LABELS if "label_rule" in card else FORMAT
    write_sealed(path, KEY, version, card, tensors)


def read_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card and the tensors, compared with the digest; the form of the card is not checked.

    Raises:
        UserError: There is no such file, it is no adapter, it is damaged, or a later version
            wrote it.
    """
    try:
        content = path.read_bytes()
        card = card_of(path, KEY)
    except OSError as error:
        raise UserError(
            f"cannot read an adapter from {path}: {error.strerror or error}; `fewshot fit … --save`"
            " and `fewshot auto` write one"
        ) from None
    if card is None:
        raise UserError(
            f"{path} is no adapter of this program, or its header is damaged; "
            "`fewshot fit … --save` and `fewshot auto` write one"
        )
    version, digest = card.get("format"), card.get("digest")
    if version not in READ:
        raise UserError(
            f"{path} is of adapter format {version}, and this version reads "
            f"{READ[0]} to {READ[-1]}; update fewshot"
        )
    try:
        tensors = load(content)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); copy or fit it again") from None
    old = version == 1
    if not (_digest_of_tensors(tensors) == digest if old else is_whole(content, str(digest))):
        raise UserError(f"{path} is damaged: its bytes are not those written; copy or fit it again")
    return card, tensors


def _digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

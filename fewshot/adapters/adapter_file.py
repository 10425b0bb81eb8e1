"""The file of an adapter: safetensors, with the card as JSON in its header and a digest over all.

The digest stands in the card and covers every byte of the file, in which its own 64 digits count
as zeros. In files of format 1 it covers the tensors alone.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache.atomic import replacing
from cache.errors import UserError
from fewshot.adapters.header import KEY, card_of

FORMAT = 3
READ = (1, 2, FORMAT)
ZEROS = "0" * 64
_DIGEST = '\\"digest\\": \\"{}\\"'  # as it stands in the header: JSON within JSON


def write_adapter(path: Path, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the file whole or not at all, in the newest format."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps({"format": FORMAT, "digest": ZEROS, **card}, ensure_ascii=False)
    content = save(plain, {KEY: text})
    place = _digest_at(content, ZEROS)
    digest = hashlib.sha256(content).hexdigest().encode()
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.seek(place)
        file.write(digest)


def read_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card and the tensors, compared with the digest; the form of the card is not checked.

    Raises:
        UserError: There is no such file, it is no adapter, it is damaged, or a later version
            wrote it.
    """
    try:
        content = path.read_bytes()
        card = card_of(path)
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
            f"{READ[0]} to {FORMAT}; update fewshot"
        )
    try:
        tensors = load(content)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); copy or fit it again") from None
    own = _digest_of_tensors(tensors) if version == 1 else _digest_of_file(content, str(digest))
    if own != digest:
        raise UserError(f"{path} is damaged: its bytes are not those written; copy or fit it again")
    return card, tensors


def _digest_at(content: bytes, digest: str) -> int:
    """Where a digest stands in the header; -1 where it does not."""
    end = 8 + int.from_bytes(content[:8], "little")
    before, _, _ = _DIGEST.partition("{}")
    found = content.find(_DIGEST.format(digest).encode(), 8, end)
    return found if found < 0 else found + len(before)


def _digest_of_file(content: bytes, digest: str) -> str:
    """SHA-256 with zeros in place of a digest in the header; "" where that is not there."""
    place = _digest_at(content, digest)
    if place < 0:
        return ""
    view = memoryview(content)
    found = hashlib.sha256(view[:place])
    found.update(ZEROS.encode())
    found.update(view[place + len(ZEROS) :])
    return found.hexdigest()


def _digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""The features of prompts: those that are in the bank, and those that are not encoded yet."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cache.extraction.bank import Bank
from cache.extraction.shards import full
from cache.files.json_text import canonical_json
from cache.models.encoder import Encoder
from cache.progress import progress

PROMPTS_PER_BATCH = 32


def text_features(
    prompts: Sequence[str], encoder: Encoder, bank: Bank, number: int, title: str
) -> dict[str, NDArray[np.float32]]:
    """Each prompt with its embedding (D,) and, where the tower ends in a matrix, pooled (W,).

    Args:
        prompts: P prompts, each once.
        encoder: The model.
        bank: Where features are kept, and where new ones are put.
        number: The encoder's in the bank.
        title: Title of the progress.
    """
    kept = bank.get(number, map(prompt_key, prompts))
    text = {p: kept[prompt_key(p)] for p in prompts if prompt_key(p) in kept}
    with progress(title, len(prompts), len(text)) as advance:
        new = [prompt for prompt in prompts if prompt not in text]
        for some, vectors in encode_prompts(new, encoder):
            bank.put(number, "prompt", list(map(prompt_key, some)), vectors)
            text |= zip(some, vectors, strict=True)
            advance(len(some))
    return text


def prompt_key(prompt: str) -> bytes:
    """The key of a prompt."""
    return hashlib.sha256(canonical_json({"prompt": prompt}).encode()).digest()


def encode_prompts(
    prompts: Sequence[str], encoder: Encoder
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Batches of prompts with their embeddings (P, D), unnormalized.

    Beside them, where the text tower ends in a projection, what it projected: (P, D + W). A
    batch holds prompts on which the tower runs for the same number of tokens.
    """
    by_length: dict[int, list[str]] = {}
    for prompt, length in zip(prompts, encoder.text_lengths(prompts), strict=True):
        by_length.setdefault(length, []).append(prompt)
    for group in by_length.values():
        for filled, n in full(group, PROMPTS_PER_BATCH):
            features, pooled = encoder.encode_text_pooled(filled)
            parts = [features] if pooled is None else [features, pooled]
            yield filled[:n], torch.cat(parts, dim=1)[:n].numpy()

"""Models that are on this machine: nothing is fetched to find out."""

import importlib.util

from cache.location import IMAGE_ONLY
from cache.models.loading import HUGGING_FACE

FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
    "model.safetensors", "pytorch_model.bin",
)  # fmt: skip


def at_hand(model: str) -> bool:
    """True for the bundled model, and for a published one that the hub's cache holds.

    That is its weights and, where transformers reads its prompts, that package and its tokenizer.

    Args:
        model: `tiny`, `ARCH/TAG` of open_clip, or `timm:NAME.TAG`.
    """
    from huggingface_hub import try_to_load_from_cache

    if model == "tiny":
        return True
    repository = _repository(model)
    tokenizer = _tokenizer(model)

    def held(repository: str | None, *names: str) -> bool:
        return repository is not None and any(
            isinstance(try_to_load_from_cache(repository, name), str) for name in names
        )

    if tokenizer and importlib.util.find_spec("transformers") is None:
        return False
    return held(repository, *FILES) and (not tokenizer or held(tokenizer, "tokenizer.json"))


def _repository(model: str) -> str | None:
    """The hub's repository of the weights."""
    if model.startswith(IMAGE_ONLY):
        import timm

        found = timm.get_pretrained_cfg(model.removeprefix(IMAGE_ONLY))
        return str(found.hf_hub_id) if found and found.hf_hub_id else None
    from open_clip.pretrained import get_pretrained_cfg

    arch, _, tag = model.rpartition("/")
    hub = str(get_pretrained_cfg(arch, tag).get("hf_hub", "")).strip("/")
    return "/".join(hub.split("/")[:2]) or None


def _tokenizer(model: str) -> str:
    """The hub's repository of a tokenizer that transformers reads; empty where none is needed."""
    if model.startswith(IMAGE_ONLY):
        return ""
    from open_clip import get_model_config

    text = (get_model_config(model.rpartition("/")[0]) or {}).get("text_cfg", {})
    return next((str(text[key]) for key in HUGGING_FACE[::-1] if text.get(key)), "")

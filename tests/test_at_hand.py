import pytest

from cache.models.at_hand import at_hand

HELD = {
    ("timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors"),
    ("timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors"),
    ("timm/ViT-B-16-SigLIP2", "open_clip_model.safetensors"),
}
TOKENIZER = ("timm/ViT-B-16-SigLIP2", "tokenizer.json")


@pytest.mark.parametrize(
    ("model", "package", "tokenizer", "expected"),
    [
        ("tiny", False, False, True),
        ("ViT-B-16/openai", False, False, True),
        ("ViT-B-32/openai", False, False, False),
        ("timm:vit_small_patch14_dinov2.lvd142m", False, False, True),
        ("timm:vit_base_patch14_dinov2.lvd142m", False, False, False),
        ("ViT-B-16-SigLIP2/webli", True, True, True),
        ("ViT-B-16-SigLIP2/webli", False, True, False),
        ("ViT-B-16-SigLIP2/webli", True, False, False),
    ],
)
def test_a_model_is_at_hand_with_its_weights_and_all_that_reads_its_prompts(
    model: str, package: bool, tokenizer: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HELD | ({TOKENIZER} if tokenizer else set())
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repository, name: "file" if (repository, name) in held else None,
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if package else None)
    assert at_hand(model) is expected

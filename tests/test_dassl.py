import pytest

from cache.errors import UserError
from fewshot.endtoend.methods import configure

WORDS = "the number of words in ctx_init 'a.photo.of.a'; got"


@pytest.mark.parametrize(
    ("name", "settings", "refused"),
    [
        ("kgcoop", {"n_ctx": "8"}, f"n_ctx must be 4, {WORDS} 8; change one of them, or give an"),
        ("cocoop", {"n_ctx": "3"}, f"n_ctx must be 4, {WORDS} 3"),
        ("coop", {"n_ctx": "9", "ctx_init": "a_photo_of_a"}, f"n_ctx must be 4, {WORDS} 9"),
        ("maple", {"n_ctx": "5"}, f"n_ctx must be at most 4, {WORDS} 5"),
        ("promptsrc", {"gpa_std": "0.01", "epochs": "1"}, "gpa_std must let one of 1 epoch count"),
    ],
)
def test_what_a_plan_would_ignore_is_refused(
    name: str, settings: dict[str, str], refused: str
) -> None:
    with pytest.raises(UserError, match=refused):
        configure(name, settings, seed=1).plan(4, 40)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("kgcoop", {"n_ctx": "8", "ctx_init": ""}),
        ("coop", {"ctx_init": "a_photo_of_a"}),
        ("coop", {"n_ctx": "4", "ctx_init": "a photo of a"}),
        ("maple", {"n_ctx": "3"}),
        ("prograd", {"n_ctx": "9", "ctx_init": "a photo of a"}),
    ],
)
def test_context_tokens_that_are_learned_are_not(name: str, settings: dict[str, str]) -> None:
    assert configure(name, settings, seed=1).plan(4, 40).iterations > 0

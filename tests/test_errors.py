import pytest

from cache.errors import count, unknown


@pytest.mark.parametrize(
    ("n", "noun", "plural", "expected"),
    [
        (0, "image", "", "0 images"),
        (1, "image", "", "1 image"),
        (1200, "image", "", "1,200 images"),
        (1, "class", "classes", "1 class"),
        (2, "class", "classes", "2 classes"),
    ],
)
def test_a_count_agrees_with_its_noun(n: int, noun: str, plural: str, expected: str) -> None:
    assert count(n, noun, plural) == expected


def test_few_names_are_all_listed() -> None:
    error = str(unknown("method", "gad", ["ridge", "gda", "clap"], see="fewshot methods"))
    assert error == "unknown method 'gad'; did you mean 'gda'? known: clap, gda, ridge"


def test_of_many_names_the_nearest_are_listed_and_the_command_for_the_rest() -> None:
    known = [f"model-{i:03d}" for i in range(145)] + ["ViT-B-16", "ViT-B-32"]
    error = str(unknown("model", "vit-b-61", known, see="fewshot models"))
    assert "did you mean 'ViT-B-16' or 'ViT-B-32'" in error
    listed = error.partition("known: ")[2].partition(" and ")[0].split(", ")
    assert len(listed) == 5
    assert {"ViT-B-16", "ViT-B-32"} <= set(listed)
    assert error.endswith(" and 142 more, listed by fewshot models")


def test_a_name_like_no_other_gets_a_list_all_the_same() -> None:
    assert "known: " in str(unknown("model", "", [f"model-{i}" for i in range(40)]))


def test_where_nothing_is_known_the_error_says_so() -> None:
    assert str(unknown("template set of dtd", "x", [])) == (
        "unknown template set of dtd 'x'; there is none, so leave it out"
    )

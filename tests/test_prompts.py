import json
from pathlib import Path

import pytest

from cache.errors import UserError
from cache.prompts import from_file, from_templates, prompt_sets


def test_templates_are_filled_template_by_template_with_ids_in_class_order() -> None:
    prompts = from_templates(["red_fox", "cat"], ["a {}.", "the {}?"])
    assert prompts.prompts == ("a red fox.", "a cat.", "the red fox?", "the cat?")
    assert prompts.labels == (0, 1, 0, 1)


def test_raw_names_keep_their_underscores() -> None:
    assert from_templates(["red_fox"], ["a {}."], raw_names=True).prompts == ("a red_fox.",)


def test_both_spellings_are_kept_only_where_a_name_has_an_underscore() -> None:
    assert set(prompt_sets(["cat", "dog"], ["a {}."])) == {"templates"}
    sets = prompt_sets(["red_fox", "dog"], ["a {}."])
    assert set(sets) == {"templates", "templates-raw"}
    assert sets["templates-raw"].prompts == ("a red_fox.", "a dog.")


def test_further_sets_of_templates_stand_beside_the_usual_ones() -> None:
    sets = prompt_sets(["cat"], ["a {}."], further={"two": ["{}", "the {}"]})
    assert sets["two"].prompts == ("cat", "the cat")
    assert sets["templates"].prompts == ("a cat.",)


def test_classes_of_one_name_keep_their_own_ids() -> None:
    assert from_templates(["missile", "missile"], ["a {}."]).labels == (0, 1)


@pytest.mark.parametrize("template", ["a photo.", "a {} and a {}."])
def test_a_template_without_exactly_one_place_for_the_name_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"one \{\} where the class name goes"):
        from_templates(["cat"], [template])


def test_no_template_is_refused() -> None:
    with pytest.raises(UserError, match="give at least one"):
        from_templates(["cat"], [])


def written(path: Path, table: object) -> Path:
    path.write_text(json.dumps(table))
    return path


def test_a_prompt_file_is_matched_whatever_case_underscores_and_hyphens(tmp_path: Path) -> None:
    file = written(tmp_path / "p.json", {"Red Fox": ["orange", "bushy"], "t-shirt": ["cotton"]})
    prompts = from_file(file, ["t_shirt", "red_fox"])
    assert prompts.prompts == ("cotton", "orange", "bushy")
    assert prompts.labels == (0, 1, 1)


def test_a_prompt_file_may_be_keyed_by_class_id(tmp_path: Path) -> None:
    file = written(tmp_path / "p.json", {"1": ["b"], "0": ["a"]})
    assert from_file(file, ["x", "x"]).prompts == ("a", "b")


def test_classes_of_one_name_share_their_sentences(tmp_path: Path) -> None:
    file = written(tmp_path / "p.json", {"missile": ["a rocket"]})
    assert from_file(file, ["missile", "missile"]).labels == (0, 1)


def test_a_class_without_sentences_is_named_with_the_keys_left_over(tmp_path: Path) -> None:
    file = written(tmp_path / "p.json", {"cat": ["a"], "dgo": ["b"]})
    with pytest.raises(UserError, match=r"1 of 2 classes: dog; its keys without a class: dgo"):
        from_file(file, ["cat", "dog"])


def test_a_key_that_is_no_class_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "p.json", {"cat": ["a"], "dog": ["b"]})
    with pytest.raises(UserError, match="no class: dog"):
        from_file(file, ["cat"])


@pytest.mark.parametrize("table", [["a"], {"cat": "a"}, {"cat": []}, {"cat": [1]}])
def test_json_of_another_shape_is_refused(tmp_path: Path, table: object) -> None:
    with pytest.raises(UserError, match="class -> list of sentences"):
        from_file(written(tmp_path / "p.json", table), ["cat"])


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        from_file(tmp_path / "p.json", ["cat"])


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "templates.json", {"cat": ["a"]})
    with pytest.raises(UserError, match="rename"):
        prompt_sets(["cat"], ["a {}."], [file])


def test_the_digest_tells_prompts_and_labels_apart() -> None:
    digests = {
        from_templates(["a", "b"], ["{}"]).digest(),
        from_templates(["b", "a"], ["{}"]).digest(),
        from_templates(["a", "b"], ["{}."]).digest(),
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("dataset", "split", "count"),
    [("dtd", "DescribableTextures", 2820), ("eurosat", "EuroSAT", 198), ("ucf101", "UCF101", 1824)],
)
def test_published_cupl_prompts_serve_every_class(
    shared: Path, dataset: str, split: str, count: int
) -> None:
    rows = json.loads((shared / "splits" / f"split_zhou_{split}.json").read_text())["test"]
    names = dict(sorted({label: name for _, label, name in rows}.items()))
    prompts = from_file(shared / "prompts" / f"CuPL_prompts_{dataset}.json", list(names.values()))
    assert len(prompts.prompts) == count
    assert set(prompts.labels) == set(names)


def test_nesting_too_deep_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match="too deep a nesting"):
        from_file(tmp_path / "p.json", ("a",))

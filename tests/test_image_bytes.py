import hashlib
from pathlib import Path

from cache.datasets.manifest import load_manifest
from cache.datasets.resolving import find, resolve_folder
from cache.datasets.source import Source
from cache.extraction.digests import of_images
from fewshot.report.build import make
from fewshot.results.image_bytes import different_images
from fewshot.results.log import Result
from tests.toy_results import RESULT, result


def folder(root: Path, **images: bytes) -> Source:
    for name, content in images.items():
        path = root / "train" / name[0] / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff" + content)
    return resolve_folder(root)


def test_the_digest_is_of_sorted_contents_and_not_of_names(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", a1=b"x", b1=b"y")
    other = folder(tmp_path / "other", a7=b"y", b0=b"x")
    contents = sorted(hashlib.sha256(b"\xff\xd8\xff" + c).digest() for c in (b"x", b"y"))
    assert of_images(one, "train") == hashlib.sha256(b"".join(contents)).hexdigest()
    assert of_images(other, "train") == of_images(one, "train")
    changed = folder(tmp_path / "changed", a1=b"x", b1=b"z")
    assert of_images(changed, "train") != of_images(one, "train")


def test_the_digits_are_those_that_their_manifest_declares() -> None:
    digits = find("digits")
    declared = load_manifest("digits").content
    assert {split: of_images(digits, split) for split in digits.splits} == declared


def test_results_of_one_name_on_images_of_other_bytes_are_told_apart() -> None:
    mine, theirs = "1" * 16, "2" * 16
    results = [
        result(seed=1, image_digest=mine), result(seed=2, image_digest=mine),
        result(seed=1, fingerprint="g", image_digest=theirs),
        result(seed=3), result(dataset="eurosat", image_digest=theirs),
    ]  # fmt: skip
    [told] = different_images(results)
    assert told == (
        "dtd: results on 2 different sets of test images, byte by byte, do not compare: "
        f"{mine} (2 results) and {theirs} (1 result)"
    )
    assert told in make(results, with_published=False).notes
    assert different_images(results[:2]) == []


def test_a_result_line_of_before_does_not_know_its_images() -> None:
    line = RESULT.to_json().replace(', "image_digest": null', "")
    assert "image_digest" not in line
    assert Result.from_json(line).image_digest is None

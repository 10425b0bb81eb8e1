import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cache.errors import UserError
from cache.importing.import_store import BLOCK
from cache.store import FeatureStore
from tests.feature_files import (
    N_CLASSES,
    SIZES,
    check_content,
    features,
    imported,
    labels,
    npz,
    refuse,
    unit,
)


def tip_adapter(folder: Path) -> Path:
    """A folder as Tip-Adapter leaves it, with APE's text weights."""
    folder.mkdir()
    keys = torch.from_numpy(features(SIZES["train"]))
    torch.save(keys.T.half(), folder / "keys_4shots.pt")
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels(SIZES["train"])))
    torch.save(one_hot.half(), folder / "values_4shots.pt")
    for split in ("val", "test"):
        torch.save(torch.from_numpy(features(SIZES[split])), folder / f"{split}_f.pt")
        torch.save(torch.from_numpy(labels(SIZES[split])), folder / f"{split}_l.pt")
    torch.save(torch.from_numpy(features(N_CLASSES)).T, folder / "text_weights_cupl_t.pt")
    return folder


def test_a_npz_becomes_a_store(tmp_path: Path) -> None:
    file = npz(tmp_path / "f.npz", test_paths=[f"t/{i}.jpg" for i in range(SIZES["test"])])
    store = imported(file, tmp_path)
    check_content(store)
    assert store.path == tmp_path / "stores" / "toy" / "ViT-B-16-openai.h5"
    assert store.imported
    assert (store.dataset, store.model, store.logit_scale) == ("toy", "ViT-B-16/openai", 100.0)
    assert store.classnames == ("a", "b_c", "d")
    assert store.paths("test")[1] == "t/1.jpg"
    assert store.paths("train")[1] == "train_features[1]"
    assert store.identity["dataset"]["origin"] == "imported from f.npz"
    assert store.identity["preprocessing"] == "unknown"
    assert store.identity["import"]["arrays"]["train_labels"] == "train_labels"
    assert re.fullmatch("[0-9a-f]{64}", store.identity["import"]["files"]["f.npz"])


def test_rows_in_one_piece_are_split_within_each_class(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=features(60), y=labels(60).astype(np.float64))
    store = imported(tmp_path / "f.npz", tmp_path)
    rows = []
    for split, share in (("train", 10), ("val", 4), ("test", 6)):
        np.testing.assert_array_equal(np.bincount(store.labels(split)), [share] * 3)
        here = [int(path.removeprefix("x[").removesuffix("]")) for path in store.paths(split)]
        np.testing.assert_array_equal(store.labels(split), labels(60)[here])
        raw = store.features(split, unit=False)
        np.testing.assert_allclose(raw, features(60)[here], rtol=1e-3, atol=2e-3)
        rows += here
    assert sorted(rows) == list(range(60))
    assert store.classnames == ("class 0", "class 1", "class 2")
    assert store.text_sets == ()
    assert "stratified" in store.identity["dataset"]["origin"]


def test_text_of_several_templates_is_averaged_as_unit_vectors(tmp_path: Path) -> None:
    text = np.stack([features(N_CLASSES, seed) * (seed + 1) for seed in range(4)])  # (T, C, D)
    prompts = ["a photo of a {}.", "art of a ", "{}", "the {}"]
    store = imported(npz(tmp_path / "f.npz", text_features=text, prompts=prompts), tmp_path)
    np.testing.assert_allclose(store.text(), unit(unit(text).mean(axis=0)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(store.text("raw-mean"), text.mean(axis=0), rtol=1e-5, atol=1e-6)
    with h5py.File(store.path) as file:
        sentences = list(file["text/imported/prompts"].asstr()[1:5])
    assert sentences == ["a photo of a b_c.", "a photo of a d.", "art of a a", "art of a b_c"]


def test_rows_beyond_one_block_are_there(tmp_path: Path) -> None:
    size = BLOCK + 3
    file = npz(tmp_path / "f.npz", test_features=features(size), test_labels=labels(size))
    raw = imported(file, tmp_path).features("test", unit=False)
    np.testing.assert_allclose(raw, features(size), rtol=1e-3, atol=3e-3)


def test_a_tip_adapter_folder_becomes_a_store(tmp_path: Path) -> None:
    store = imported(tip_adapter(tmp_path / "caches"), tmp_path)
    check_content(store, rtol=3e-3)
    assert set(store.identity["import"]["files"]) == {
        *("keys_4shots.pt", "values_4shots.pt", "text_weights_cupl_t.pt"),
        *("val_f.pt", "val_l.pt", "test_f.pt", "test_l.pt"),
    }


def test_text_weights_per_prompt_come_class_by_class(tmp_path: Path) -> None:
    folder = tip_adapter(tmp_path / "caches")
    (folder / "text_weights_cupl_t.pt").unlink()
    text = np.stack([features(N_CLASSES, seed) for seed in range(4)])  # (T, C, D)
    torch.save(torch.from_numpy(text).swapaxes(0, 1), folder / "text_weights_cupl_t_all.pt")
    np.testing.assert_allclose(
        imported(folder, tmp_path).text("raw-mean"), text.mean(axis=0), rtol=1e-5, atol=1e-6
    )


def test_several_candidates_are_a_question(tmp_path: Path) -> None:
    folder = tip_adapter(tmp_path / "caches")
    for kind in ("keys", "values"):
        (folder / f"{kind}_2shots.pt").write_bytes((folder / f"{kind}_4shots.pt").read_bytes())
    match = "several arrays could be train_features: keys_2shots, keys_4shots; choose with --array"
    refuse(folder, tmp_path, match)
    own = {"train_features": "keys_4shots", "train_labels": "values_4shots"}
    check_content(imported(folder, tmp_path, arrays=own), rtol=3e-3)


def test_a_clip_benchmark_folder_becomes_a_store(tmp_path: Path) -> None:
    for split, size in SIZES.items():
        torch.save(torch.from_numpy(features(size)), tmp_path / f"features_{split}.pt")
        torch.save(torch.from_numpy(labels(size)), tmp_path / f"targets_{split}.pt")
    torch.save(torch.from_numpy(features(N_CLASSES)).T, tmp_path / "text_weights.pt")
    check_content(imported(tmp_path, tmp_path))


def test_an_array_taken_for_one_split_is_not_another_one_too(tmp_path: Path) -> None:
    file = npz(tmp_path / "f.npz", test_features=None, test_labels=None)
    own = {"test_features": "val_features", "test_labels": "val_labels"}
    assert imported(file, tmp_path, arrays=own).splits == ("train", "test")


def test_a_pt_file_of_named_tensors_becomes_a_store(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"text_features": torch.from_numpy(features(N_CLASSES))}
    for split, size in SIZES.items():
        arrays |= {f"{split}_features": torch.from_numpy(features(size)).requires_grad_()}
        arrays |= {f"{split}_labels": torch.from_numpy(labels(size))}
    torch.save({**arrays, "classnames": ["a", "b", "c"]}, tmp_path / "f.pt")
    store = imported(tmp_path / "f.pt", tmp_path)
    check_content(store)
    assert store.classnames == ("a", "b", "c")


def test_a_store_without_text_or_val_is_made(tmp_path: Path) -> None:
    file = npz(tmp_path / "f.npz", text_features=None, val_features=None, val_labels=None)
    store = imported(file, tmp_path)
    assert (store.splits, store.text_sets) == (("train", "test"), ())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train_features": features(11)}, "train_features has 11 rows and train_labels 12"),
        ({"train_features": features(12)[0]}, r"must be \(N, D\) numbers; .*\(8,\)"),
        ({"train_features": features(12)[:, :0]}, r"must be \(N, D\) numbers"),
        ({"test_features": features(9)[:, :5]}, "test features are 5 wide and train features 8"),
        ({"text_features": features(3)[:, :5]}, "text features are 5 wide and train features 8"),
        ({"text_features": features(3).T}, r"for 3 class names; text_features is \(8, 3\)"),
        ({"text_features": features(3)[0]}, r"text_features is \(8,\)"),
        ({"text_features": features(4)}, r"for 3 class names; text_features is \(4, 8\)"),
        (
            {"text_features": features(2), "classnames": None},
            r"a row for each class, and labels go up to 2; text_features is \(2, 8\); give 3 rows",
        ),
        ({"text_features": features(3) * [[1], [0], [1]]}, "text features .* 1 of 3 are not"),
        ({"train_labels": labels(12) + 1}, r"train: labels must be in 0..2, .*got 1..3"),
        ({"train_labels": labels(12) - 1}, r"class ids from 0 on.*; train_labels .* from -1 on"),
        ({"train_labels": labels(12) + 0.5}, r"class ids from 0 on.*; train_labels is float64"),
        ({"train_labels": np.eye(12)}, r"labels must be in 0\.\.2, for 3 class names; got 0\.\.11"),
        ({"train_labels": None}, "no array for train_labels among"),
        ({"train_paths": ["a"]}, "12 labels and 1 path;"),
        ({"features": features(3)}, "there are train features, and features, which may be any"),
        ({"classnames": np.array(["a", "b", "c"], dtype=object)}, "array classnames .* is pickled"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_are_refused(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    refuse(npz(tmp_path / "f.npz", **changes), tmp_path, match)


def test_a_file_of_no_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz")
    refuse(tmp_path / "f.npz", tmp_path, "no array for features among none; say which it is")


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
def test_a_logit_scale_that_makes_all_classes_alike_or_none_is_refused(
    tmp_path: Path, scale: float
) -> None:
    file = npz(tmp_path / "f.npz")
    refuse(file, tmp_path, "logit scale must be a finite number above 0; got", logit_scale=scale)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 0])
def test_features_that_are_no_direction_are_counted(tmp_path: Path, value: float) -> None:
    bad = features(12)
    bad[[7, 9]] = value
    file = npz(tmp_path / "f.npz", train_features=bad)
    refuse(file, tmp_path, "2 of 12 rows of train_features are not, the first is row 7")


def test_one_class_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=features(6), y=np.zeros(6, int))
    refuse(tmp_path / "f.npz", tmp_path, "only one class")


def test_files_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "f.npz", tmp_path, "no file or folder at")
    (tmp_path / "f.csv").touch()
    refuse(tmp_path / "f.csv", tmp_path, "got f.csv")
    (tmp_path / "f.npz").write_bytes(b"PK no archive")
    refuse(tmp_path / "f.npz", tmp_path, "no .npz archive, or is damaged")
    npz(tmp_path / "g.npz")
    content = bytearray((tmp_path / "g.npz").read_bytes())
    content[200] ^= 1
    (tmp_path / "g.npz").write_bytes(content)
    refuse(tmp_path / "g.npz", tmp_path, "cut short or damaged")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", tmp_path, "no .pt files in")
    torch.save(torch.zeros(3, 4), tmp_path / "test_f.pt")
    refuse(tmp_path / "test_f.pt", tmp_path, "one tensor without a name; give its folder")
    torch.save({"train_features": Path("x")}, tmp_path / "code.pt")
    refuse(tmp_path / "code.pt", tmp_path, "damaged or holds more than tensors")


def test_a_store_that_is_there_is_left_or_replaced_as_told(tmp_path: Path) -> None:
    first = npz(tmp_path / "f.npz")
    other = npz(tmp_path / "g.npz", train_features=features(12, seed=1))
    before = imported(first, tmp_path)
    for options in ({"if_exists": "skip"}, {"if_exists": "resume"}):
        assert imported(first, tmp_path, **options).stamp == before.stamp
    assert imported(other, tmp_path, if_exists="skip").stamp == before.stamp
    with pytest.raises(UserError, match=r"exists; --if-exists skip or overwrite"):
        imported(first, tmp_path)
    with pytest.raises(UserError, match=r"origin is 'imported from f.npz', asked for"):
        imported(other, tmp_path, if_exists="resume")
    with pytest.raises(UserError, match="unknown --if-exists 'replace'"):
        imported(first, tmp_path, if_exists="replace")
    assert imported(first, tmp_path, if_exists="overwrite").fingerprint == before.fingerprint
    assert imported(other, tmp_path, if_exists="overwrite").fingerprint != before.fingerprint


def test_a_npz_is_imported_without_torch(tmp_path: Path) -> None:
    file = npz(tmp_path / "f.npz")
    code = f"""if True:
        import sys
        sys.modules.update(torch=None, open_clip=None, torchvision=None)
        from pathlib import Path
        from cache.importing.import_store import BLOCK, import_file
        import_file(Path({str(file)!r}), "toy", "m", Path({str(tmp_path)!r}))
    """
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def zero_shot_hits(store: FeatureStore) -> NDArray[np.bool_]:
    text = store.text()
    return np.concatenate(
        [(store.features(s) @ text.T).argmax(axis=1) == store.labels(s) for s in store.splits]
    )


@pytest.mark.parametrize("text", ["text_avgprompt", "text_per_prompt"])
def test_whurs19_keeps_its_published_zero_shot_accuracy(
    shared: Path, tmp_path: Path, text: str
) -> None:
    file = shared / "features" / "whurs19_clip_vitb32.npz"
    store = imported(file, tmp_path, arrays={"text_features": text})
    hits = zero_shot_hits(store)
    assert len(hits) == 1005
    assert f"{hits.mean():.2%}" == "81.29%"


def test_ucf101_keeps_its_published_zero_shot_accuracy(shared: Path, tmp_path: Path) -> None:
    own = {"train_features": "train16_x", "train_labels": "train16_y"}
    file = shared / "features" / "ucf101_openai_vitb16.npz"
    store = imported(file, tmp_path, arrays=own)
    hits = (store.features("test") @ store.text().T).argmax(axis=1) == store.labels("test")
    assert f"{hits.mean():.1%}" == "70.4%"
    assert store.paths("test")[0] == "Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg"


def test_dtd_is_imported_without_text(shared: Path, tmp_path: Path) -> None:
    file = shared / "features" / "dtd_openai_rn50.npz"
    refuse(file, tmp_path, "unknown purpose: train16_x")
    own = {"train_features": "train16_x", "train_labels": "train16_y"}
    store = imported(file, tmp_path, arrays=own)
    assert (store.n_classes, store.dim, store.text_sets) == (47, 1024, ())
    assert {split: len(store.labels(split)) for split in store.splits} == {
        "train": 752,
        "val": 1128,
        "test": 1692,
    }


def test_short_names_and_names_of_ones_own_are_known(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"text": features(N_CLASSES), "class_names": ["a", "b", "c"]}
    for split in ("train4", "val", "test"):
        size = SIZES[split.removesuffix("4")]
        arrays |= {f"{split}_x": features(size), f"{split}_y": labels(size)}
    np.savez(tmp_path / "f.npz", **arrays, train2_x=features(6), train2_y=labels(6))
    refuse(tmp_path / "f.npz", tmp_path, "unknown purpose: train2_x, train2_y, train4_x, train4_y")
    own = {"train_features": "train4_x", "train_labels": "train4_y"}
    store = imported(tmp_path / "f.npz", tmp_path, arrays=own)
    check_content(store)
    assert store.classnames == ("a", "b", "c")
    refuse(
        tmp_path / "f.npz", tmp_path / "a", "unknown array 'train'", arrays={"train": "train4_x"}
    )
    wrong = {"train_features": "train4_z"}
    refuse(tmp_path / "f.npz", tmp_path / "b", "did you mean .*'train4_x'", arrays=wrong)

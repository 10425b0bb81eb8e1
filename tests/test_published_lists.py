"""Manifests against the lists that are published for them, where these are at hand."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cache.datasets.layouts.imagenet import read_variant
from cache.datasets.manifest import load_manifest
from cache.datasets.resolving import resolve
from cache.datasets.source import Source
from cache.extraction.store_writer import create
from cache.store import FeatureStore
from fewshot import read_sample


def unpack(archive: Path, folder: Path, **renamed: str) -> None:
    """Members of an archive as files of a folder, under these names."""
    folder.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for name, member in renamed.items():
            content = tar.extractfile(member)
            assert content is not None
            (folder / name.replace("__", ".")).write_bytes(content.read())


def checked(name: str, root: Path) -> Source:
    """The dataset, once its sizes are the declared ones."""
    manifest = load_manifest(name)
    source = resolve(manifest, root)
    if manifest.sizes:
        assert {split: len(items) for split, items in source.splits.items()} == manifest.sizes
    return source


def test_nabirds_labels_do_not_shift_where_val_lacks_two_classes(
    shared: Path, tmp_path: Path
) -> None:
    lists = {f"{split}__json": f"nabirds/{split}.json" for split in ("train", "val", "test")}
    unpack(shared / "splits_more/fgvc5/splits.tar.gz", tmp_path / "vpt/nabirds", **lists)
    (tmp_path / "vpt/nabirds/names.txt").write_text("\n".join(f"bird {k}" for k in range(555)))
    source = checked("vpt_nabirds", tmp_path)
    folders = {k: {(i.path[:4], i.label) for i in items} for k, items in source.splits.items()}
    assert len(folders["val"]) == 553
    assert folders["val"] < folders["train"] == folders["test"]


def test_the_ids_of_stanford_cars_have_the_names_of_coops_split(
    shared: Path, tmp_path: Path
) -> None:
    lists = {f"{split}__json": f"stanfordcars/{split}.json" for split in ("train", "val", "test")}
    unpack(shared / "splits_more/fgvc5/splits.tar.gz", tmp_path / "vpt/cars", **lists)
    source = checked("vpt_cars", tmp_path)
    split = json.loads((shared / "splits/split_zhou_StanfordCars.json").read_text())
    names = {path: name for rows in split.values() for path, _, name in rows}
    for items in source.splits.values():
        for item in items:
            assert source.classnames[item.label] == names[item.path.partition("/")[2]]


def test_unknown_classes_of_geounida_are_told_apart_by_their_folders(
    shared: Path, tmp_path: Path
) -> None:
    lists = {f"asia_{split}__txt": f"uniDA/asia_{split}.txt" for split in ("train", "test")}
    unpack(shared / "splits_more/geonet/lists.tar.gz", tmp_path / "geounida", **lists)
    asia = checked("geounida_asia", tmp_path)
    assert len({item.label for item in asia.splits["test"]}) == 200  # 63 labels in the list


def test_office_home_names_its_labels_with_capitals_first(shared: Path, tmp_path: Path) -> None:
    archive = shared / "splits_more/uda/office31_officehome_visdac_domainnet126.tar.gz"
    folder = tmp_path / "office_home_lists"
    unpack(archive, folder, Art_list__txt="office-home/Art_list.txt")
    source = checked("office_home_art", tmp_path)
    assert source.classnames[58:60] == ("TV", "Table")
    assert sum(map(len, source.splits.values())) == 2427


@pytest.mark.parametrize(("name", "first"), [("BTMRI", "glioma tumor"), ("BUSI", "benign tumor")])
def test_a_biomedical_split_has_the_declared_sizes(
    name: str, first: str, shared: Path, tmp_path: Path
) -> None:
    member = {f"split_{name}__json": f"split_{name}.json"}
    unpack(shared / "splits_more/biomedcoop/splits.tar.gz", tmp_path / name, **member)
    (tmp_path / name / name).mkdir()
    assert checked(f"biomed_{name.lower()}", tmp_path).classnames[0] == first


def test_noahs_pets_are_coops_each_listed_twice_at_one_shot(shared: Path, tmp_path: Path) -> None:
    split = json.loads((shared / "splits/split_zhou_OxfordPets.json").read_text())["train"]
    names = [name for _, name in sorted({(label, name) for _, label, name in split})]
    identity = {"dataset": {"name": "oxford_pets"}, "model": {"name": "none"}}
    with create(tmp_path / "p.h5", identity=identity, classnames=names, versions={}) as writer:
        paths, labels = [row[0] for row in split], [row[1] for row in split]
        writer.split("train", labels=labels, paths=paths, dim=1)
        writer.write("train", 0, np.ones((len(split), 1)))
    pets = FeatureStore.open(tmp_path / "p.h5")
    lists = {
        f"num_shot_{k}__seed_{s}": f"oxford-pets/train_meta.list.num_shot_{k}.seed_{s}"
        for k, s in ((1, 0), (16, 2))
    }
    unpack(shared / "splits_more/noah/few_shot.tar.gz", tmp_path / "lists", **lists)
    samples = [read_sample(path, pets) for path in sorted((tmp_path / "lists").iterdir())]
    assert [(s.shots, s.seed, len(s.train)) for s in samples] == [(1, 0, 37), (16, 2, 16 * 37)]


def test_imagenet_a_and_r_have_the_published_ids_of_their_200_classes(
    shared: Path, tmp_path: Path
) -> None:
    more = shared / "splits_more/noah"
    one_shot = "imagenet/train_meta.list.num_shot_1.seed_0"
    unpack(more / "few_shot_imagenet_train.tar.gz", tmp_path / "imagenet", list=one_shot)
    wnids = [
        line.partition("/")[0] for line in (tmp_path / "imagenet/list").read_text().split("\n")
    ]
    (tmp_path / "imagenet/classnames.txt").write_text("\n".join(f"{w} x" for w in wnids if w))
    for name in ("adversarial", "rendition"):
        list_ = {"list": f"imagenet-{name}/val_meta.list"}
        unpack(more / "domain_generalization.tar.gz", tmp_path / f"imagenet-{name}", **list_)
        manifest = load_manifest(f"imagenet_{name}")
        root = tmp_path / manifest.layout.directory
        lines = (root / "list").read_text().splitlines()
        published = {}
        for line in lines:
            path, _, label = line.rpartition(" ")  # file names hold spaces
            published[path.split("/")[1]] = int(label)
        for wnid in published:
            (root / manifest.layout.images / wnid).mkdir(parents=True)
        assert read_variant(manifest, tmp_path).class_ids == tuple(sorted(published.values()))
        assert len(lines) == manifest.sizes["test"]

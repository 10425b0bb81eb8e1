import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cache.datasets.layouts.torchvision_datasets import PLACES
from cache.datasets.manifest import all_manifests, describe, load_manifest
from cache.datasets.manifest_file import TORCHVISION
from cache.errors import UserError

COOP = [
    "caltech101", "dtd", "eurosat", "fgvc_aircraft", "food101", "imagenet", "oxford_flowers",
    "oxford_pets", "stanford_cars", "sun397", "ucf101",
]  # fmt: skip
DOMAINS = [
    *(
        f"domainnet_{d}"
        for d in ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    ),
    *(f"office31_{d}" for d in ("amazon", "dslr", "webcam")),
    *(f"office_home_{d}" for d in ("art", "clipart", "product", "real_world")),
    "visda_c_train",
    "visda_c_validation",
]
GEO = [f"geo{kind}_{region}" for kind in ("imnet", "places", "unida") for region in ("asia", "usa")]
ZERO_SHOT = [f"zsl_{name}" for name in ("apy", "awa1", "awa2", "cub", "flowers", "sun")]
VPT = [f"vpt_{name}" for name in ("cars", "cub", "dogs", "flowers", "nabirds")]
BIOMEDICAL = [
    f"biomed_{name}"
    for name in (
        "btmri", "busi", "chmnist", "covid_19", "ctkidney", "dermamnist", "kneexray", "kvasir",
        "lungcolon", "octmnist", "retina",
    )
]  # fmt: skip
VTAB = [
    f"vtab_{name}"
    for name in (
        "caltech101", "cifar", "clevr_count", "clevr_dist", "diabetic_retinopathy", "dmlab",
        "dsprites_loc", "dsprites_ori", "dtd", "eurosat", "kitti", "oxford_flowers102",
        "oxford_iiit_pet", "patch_camelyon", "resisc45", "smallnorb_azi", "smallnorb_ele", "sun397",
        "svhn",
    )
]  # fmt: skip
VARIANTS = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]

GOOD = """
name = "mine"
title = "Mine"
n_classes = 3
templates = ["a photo of a {}."]
[sizes]
train = 30
[layout]
kind = "folder"
directory = "mine"
[classnames]
rename.a = "ant"
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_dataset_of_the_protocol_has_a_manifest() -> None:
    assert [manifest.name for manifest in all_manifests()] == sorted(
        [*COOP, *VARIANTS, *DOMAINS, *GEO, *ZERO_SHOT, *VPT, *BIOMEDICAL, *VTAB, "digits"]
    )


def test_no_two_datasets_share_a_name_or_an_alias() -> None:
    keys = [
        re.sub("[-_]", "", name).lower()
        for manifest in all_manifests()
        for name in (manifest.name, *manifest.aliases)
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("DescribableTextures", "dtd"),
        ("describable_textures", "dtd"),
        ("DTD", "dtd"),
        ("fgvc", "fgvc_aircraft"),
        ("FGVCAircraft", "fgvc_aircraft"),
        ("fgvc-aircraft", "fgvc_aircraft"),
        ("cars", "stanford_cars"),
        ("StanfordCars", "stanford_cars"),
        ("OxfordPets", "oxford_pets"),
        ("oxford-flowers", "oxford_flowers"),
        ("Flowers102", "oxford_flowers"),
        ("Food-101", "food101"),
        ("ImageNet-V2", "imagenetv2"),
        ("ImageNetSketch", "imagenet_sketch"),
        ("imagenet-a", "imagenet_a"),
        ("SUN397", "sun397"),
    ],
)
def test_names_are_found_whatever_their_case_and_dashes(given: str, name: str) -> None:
    assert load_manifest(given).name == name


def test_an_unknown_dataset_offers_the_nearest_names() -> None:
    with pytest.raises(
        UserError, match=r"unknown dataset 'eurosta'; did you mean 'eurosat' or 'vtab"
    ):
        load_manifest("eurosta")


@pytest.mark.parametrize("name", COOP + VARIANTS)
def test_a_manifest_says_what_its_reader_needs(name: str) -> None:
    manifest = load_manifest(name)
    assert manifest.obtain
    assert manifest.license
    assert manifest.homepage.startswith("https://")
    assert manifest.n_classes
    assert manifest.sizes["test"]
    assert manifest.layout.directory
    assert all(template.endswith(".") for template in manifest.templates)
    if manifest.layout.kind == "split-file":
        assert manifest.layout.checksum
        assert manifest.layout.split_file in manifest.obtain


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_says_which_lists_it_needs_and_which_classes_are_known(name: str) -> None:
    text = describe(load_manifest(name))
    assert "_list.txt" in text or "{split}.txt" in text
    assert "mean per-class accuracy" in text
    assert re.search(r"the first (8|25|50|300) classes are known: --known published", text)


@pytest.mark.parametrize("name", [*GEO, *ZERO_SHOT, *VPT, *BIOMEDICAL, *VTAB])
def test_a_dataset_of_a_collection_has_all_that_it_does_not_share(name: str) -> None:
    manifest = load_manifest(name)
    assert manifest.homepage.startswith("https://")
    assert manifest.obtain
    assert manifest.sizes["train"]
    assert manifest.sizes["test"]
    assert manifest.layout.directory
    assert not manifest.classnames or len(manifest.classnames) == manifest.n_classes
    assert (manifest.metric == "per-class") == (name in ZERO_SHOT)


def test_vtab_is_nineteen_tasks_of_a_thousand_images() -> None:
    tasks = [load_manifest(name) for name in VTAB]
    assert all((task.sizes["train"], task.sizes["val"]) == (800, 200) for task in tasks)
    assert {task.layout.lists["train"] for task in tasks} == {"train800.txt"}
    assert len({task.layout.directory for task in tasks}) == 19
    places = load_manifest("vtab_sun397").classnames
    assert places.index("jail indoor") < places.index("jail cell")  # as TensorFlow Datasets has it


def test_totals_are_those_of_the_data() -> None:
    totals = {m.name: sum(m.sizes.values()) for m in all_manifests()}
    assert totals["food101"] == 101_000
    assert totals["fgvc_aircraft"] == 10_000
    assert totals["sun397"] == 397 * 100
    assert totals["eurosat"] == 27_000
    assert totals["digits"] == 1_797
    assert totals["imagenet"] == 1_281_167 + 50_000


def test_imagenets_templates_are_those_of_open_clip() -> None:
    from open_clip import SIMPLE_IMAGENET_TEMPLATES

    seven = tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES)
    for name in ("imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"):
        manifest = load_manifest(name)
        assert manifest.templates == seven
        assert manifest.template_sets["single"] == ("a photo of a {}.",)
        assert manifest.template_sets["eight"] == (*seven, "a photo of a {}.")


def test_published_templates() -> None:
    assert load_manifest("dtd").templates == ("{} texture.",)
    assert load_manifest("food101").templates == ("a photo of {}, a type of food.",)
    assert load_manifest("eurosat").templates == ("a centered satellite photo of {}.",)
    assert load_manifest("ucf101").templates == ("a photo of a person doing {}.",)


def test_torchvision_names_are_those_that_can_be_read() -> None:
    assert set(TORCHVISION) == set(PLACES)
    assert {m.torchvision for m in all_manifests()} - {""} == set(PLACES)


def test_the_description_tells_classes_sizes_layout_and_source() -> None:
    text = describe(load_manifest("dtd"))
    assert "47" in text
    assert "train 2,820, val 1,128, test 1,692" in text
    assert "{} texture." in text
    assert "dtd/images/" in text
    assert "dtd/split_zhou_DescribableTextures.json" in text
    assert "dtd-r1.0.1.tar.gz" in text


def test_describing_every_manifest_is_possible() -> None:
    assert all(describe(m).startswith(f"{m.name}: ") for m in all_manifests())


def test_a_manifest_of_ones_own(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.toml", GOOD)
    manifest = load_manifest("", file)
    assert load_manifest("Mine", file) == manifest
    assert manifest.n_classes == 3
    assert manifest.sizes == {"train": 30}
    assert manifest.rename == {"a": "ant"}
    assert manifest.layout.kind == "folder"
    assert manifest.digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_manifest_of_ones_own_under_another_name_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.toml", GOOD)
    with pytest.raises(UserError, match=r"unknown dataset in .*mine.toml 'dtd'; known: mine"):
        load_manifest("dtd", file)


def test_datasets_of_one_file_have_what_they_share_and_what_is_their_own(tmp_path: Path) -> None:
    file = write(
        tmp_path / "many.toml",
        GOOD.replace('name = "mine"\n', "")
        + """
[datasets.left]
sizes.test = 5
layout.directory = "left"
[datasets.right]
title = "Right"
sizes = { train = 7 }
""",
    )
    left, right = load_manifest("left", file), load_manifest("right", file)
    assert (left.title, right.title) == ("Mine", "Right")
    assert (left.sizes, right.sizes) == ({"train": 30, "test": 5}, {"train": 7})
    assert (left.layout.directory, right.layout.directory) == ("left", "mine")
    with pytest.raises(
        UserError, match=r"many.toml declares left, right; say which with --dataset"
    ):
        load_manifest("", file)


def test_an_error_of_a_dataset_among_others_names_it(tmp_path: Path) -> None:
    own = "[datasets.left]\nn_classes = 1\n"
    file = write(tmp_path / "many.toml", GOOD.replace('name = "mine"\n', "") + own)
    with pytest.raises(UserError, match=r"many.toml, datasets.left: n_classes: .* got 1"):
        load_manifest("left", file)


def test_published_names_are_made_of_those_of_the_data(tmp_path: Path) -> None:
    rules = "[classnames.replace]\n'^\\d+\\.' = ''\n'\\+' = '_'\n[classnames.rename]\na_b = 'ab'"
    file = write(tmp_path / "mine.toml", GOOD.replace('[classnames]\nrename.a = "ant"', rules))
    called = load_manifest("", file).called
    assert [called(name) for name in ("007.Auk", "a+b", "3x")] == ["Auk", "ab", "3x"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "mine"', "", r"bad.toml: name: expected a text, got nothing"),
        (
            "[layout]",
            '[template_sets]\n"a/b" = ["a {}."]\n[layout]',
            r"bad.toml: template_sets.a/b: expected a name like .*, got 'a/b'",
        ),
        ('name = "mine"', 'name = "a b"', r"bad.toml: name: expected a text like .*, got 'a b'"),
        ("n_classes = 3", 'n_classes = "3"', r"n_classes: expected a whole number .*, got '3'"),
        ("n_classes = 3", "n_classes = 1", r"n_classes: expected .* of at least 2, got 1"),
        ("train = 30", "train = true", r"sizes.train: expected .*, got True"),
        ("rename.a", "renames.a", r"'classnames.renames'; did you mean 'classnames.rename'"),
        ("n_classes", "n_clases", r"unknown key in .* 'n_clases'; did you mean 'n_classes'"),
        ("train = 30", "trian = 30", r"'sizes.trian'; did you mean 'sizes.train'"),
        ("train = 30", "train = -1", r"sizes.train: expected .* at least 1, got -1"),
        ('"folder"', '"foldr"', r"layout.kind: expected one of .*folder.*, got 'foldr'"),
        ('"folder"', '"split-file"', r"layout.split_file: expected the file .*, got nothing"),
        ("directory", "dir", r"unknown key in .* 'layout.dir'"),
        ("[sizes]", "[layout.x]", r"unknown key in .* 'layout.x'"),
        ('["a photo of a {}."]', '["a photo"]', r"templates: expected templates with one \{\}"),
        ('["a photo of a {}."]', '["{} or {}"]', r"templates: .*, got '\{\} or \{\}'"),
        ('["a photo of a {}."]', '["{n} {}"]', r"templates: .*, got '\{n\} \{\}'"),
        ('["a photo of a {}."]', "[]", r"templates: expected a list of templates, got \[\]"),
        ('["a photo of a {}."]', '"a {}"', r"templates: expected a list of texts, got 'a \{\}'"),
        ('rename.a = "ant"', "rename.a = 3", r"classnames.rename.a: expected a text, got 3"),
        ("rename.a", "replace.'('", r"classnames.replace.\(: expected a regular expression"),
        ("n_classes = 3", 'metric = "auc"', r"metric: expected one of accuracy, per-class, got"),
        ("[layout]", "[lay", r"bad.toml is not a valid TOML file"),
        ('kind = "folder"', 'kind = "folder"\nchecksum = "md5:1"', r"layout.checksum: expected"),
        ("[sizes]", 'torchvision = "DDT"\n[sizes]', r"torchvision: expected one of .*, got 'DDT'"),
        ("[sizes]", 'layouts = "DDT"\n[sizes]', r"'layouts'; did you mean 'layout'"),
    ],
)
def test_an_error_names_file_key_expected_and_got(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = write(tmp_path / "bad.toml", GOOD.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        load_manifest("", file)


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "bad.toml", 'name = "x"\ntitle = "X"\ntemplates = ["{}"]\n')
    with pytest.raises(UserError, match="layout: expected a table, got nothing"):
        load_manifest("", file)


def test_a_missing_or_binary_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the manifest .*absent.toml"):
        load_manifest("", tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a valid TOML file"):
        load_manifest("", tmp_path / "binary.toml")


def test_manifests_load_without_the_encoder() -> None:
    code = (
        "import sys; sys.modules.update(open_clip=None, torchvision=None, torch=None)\n"
        "import cache.datasets.resolving\n"
        "cache.datasets.resolving.load_manifest('dtd')"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)

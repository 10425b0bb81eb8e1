import math
from collections import Counter
from pathlib import Path

import pytest

from cache.datasets.manifest import all_manifests
from cache.errors import UserError
from fewshot.metrics import harmonic_mean
from fewshot.report.published import (
    AVERAGES,
    ELEVEN,
    FILE,
    VARIANTS,
    Figure,
    PublishedProtocol,
    differences,
    load,
    model_name,
)

FIGURES = load()


def test_every_figure_has_its_source_and_lies_where_accuracies_do() -> None:
    assert len(FIGURES) > 1000
    for figure in FIGURES.values():
        assert 0.01 < figure.accuracy < 1
        assert figure.source
        assert figure.where.startswith("https://")
        assert figure.protocol.note.endswith(".")
        assert figure.by in ("authors", "others")
        assert (figure.shots == 0) == (figure.setting in ("zero-shot", "unsupervised")) or (
            figure.setting in ("base-to-new", "transductive zero-shot")
        )


def test_most_figures_are_of_high_confidence_and_the_others_say_what_they_are() -> None:
    counts = Counter(figure.confidence for figure in FIGURES.values())
    assert counts["high"] > 0.75 * len(FIGURES)
    assert set(counts) == {"high", "medium", "digitized"}


def test_datasets_go_by_their_manifests_names() -> None:
    known = {manifest.name for manifest in all_manifests()}
    assert known >= {*ELEVEN, *VARIANTS}
    assert {figure.dataset for figure in FIGURES.values()} <= known | set(AVERAGES)


def test_averages_are_those_of_the_figures_they_are_over() -> None:
    compared = 0
    for (method, model, setting, shots, dataset, part), figure in FIGURES.items():
        if dataset != "average" or (setting == "base-to-new" and part == "accuracy"):
            continue
        over = VARIANTS if setting == "domain-generalization" else ELEVEN
        parts = [FIGURES.get((method, model, setting, shots, name, part)) for name in over]
        found = [p.accuracy for p in parts if p is not None and p.source == figure.source]
        if len(found) == len(over):
            near = 1e-3 if figure.confidence == "digitized" else 6e-4  # read off to 0.1 %
            assert figure.accuracy == pytest.approx(math.fsum(found) / len(found), abs=near)
            compared += 1
    assert compared > 60


def test_gdas_two_averages_of_harmonic_means_are_told_apart() -> None:
    key = ("gda", "ViT-B/16", "base-to-new", 16)
    base, new = (FIGURES[*key, "average", part].accuracy for part in ("base", "new"))
    of_averages = FIGURES[*key, "average", "accuracy"].accuracy
    assert harmonic_mean(base, new) == pytest.approx(of_averages, abs=1e-4)
    each = [
        harmonic_mean(*(FIGURES[*key, name, part].accuracy for part in ("base", "new")))
        for name in ELEVEN
    ]
    average = FIGURES[*key, "mean_of_harmonic_means", "accuracy"].accuracy
    assert sum(each) / 11 == pytest.approx(average, abs=1e-4)
    assert of_averages - average > 0.002


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("accuracy.dtd = [42.20]", "accuracy.dtd = [0.42]", "0.42 on dtd is no accuracy"),
        ("accuracy.dtd = [42.20]", "accuracy.dtd = [142.20]", "142.2 on dtd is no accuracy"),
        ("accuracy.dtd = [42.20]", "accuracy.dtd = [42.20, 43]", "dtd has 2 figures, not one per"),
        ("accuracy.dtd = [42.20]", "accuracy.ddt = [42.20]", "dataset must be one of"),
        ('source = "tip-adapter-log"', 'source = "hearsay"', "source must be one of"),
        ('protocol = "zero-shot-7"', 'protocol = "any"', "protocol must be one of"),
        ('confidence = "high"', 'confidence = "sure"', "confidence must be one of"),
        ('setting = "zero-shot"', 'setting = "zero"', "setting must be one of"),
        ('by = "others"', 'by = "us"', "by must be one of"),
        ('tuned_by = "full-val"', 'tuned_by = "luck"', "tuned_by must be one of"),
        ('model = "ViT-B/16"', 'model = "RN50"', "two figures of"),
        ("[source.tip-adapter-log]", "[source.tip-adapter-log", "cannot read published"),
    ],
)
def test_a_mistake_in_the_file_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    content = FILE.read_text(encoding="utf-8")
    assert old in content
    path = tmp_path / "published.toml"
    path.write_text(content.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("ViT-B-16/openai", "ViT-B/16"),
        ("ViT-L-14/openai", "ViT-L/14"),
        ("RN50/openai", "RN50"),
        ("RN50x16/openai", "RN50x16"),
        ("ViT-B-16/laion2b_s34b_b88k", None),
        ("tiny", None),
    ],
)
def test_models_are_known_by_the_papers_names(ours: str, theirs: str | None) -> None:
    assert model_name(ours) == theirs


def figure(protocol: PublishedProtocol, dataset: str = "dtd", shots: int = 16) -> Figure:
    return Figure(
        "gda", "RN50", "few-shot", shots, dataset, "accuracy", 0.5, "authors", "high", "s", "w",
        protocol,
    )  # fmt: skip


def test_only_what_differs_is_named() -> None:
    protocol = PublishedProtocol("", tuned_by="full-val", on_imagenet="test", views=10, seeds=3)
    ours = {"tune": "full-val", "n_views": 10, "seeds": {1, 2, 3}, "text": True}
    assert differences(figure(protocol), **ours) == ()  # type: ignore[arg-type]  # of mixed values
    assert differences(figure(protocol, "imagenet"), **ours) == (  # type: ignore[arg-type]
        "tuned by the test split, ours by full-val",
    )
    assert differences(
        figure(protocol), tune="cv", n_views=1, seeds={1}, text=False
    ) == (
        "tuned by full-val, ours by cv", "10 views, ours 1", "3 seeds, ours 1",
        "ours without text",
    )  # fmt: skip
    fresh = PublishedProtocol("", views=0, seeds=1)
    assert differences(figure(fresh), tune="cv", n_views=1, seeds={1, 2}, text=True) == (
        "a fresh view every epoch, ours 1",
        "1 seed, ours 2",
    )
    plain = figure(PublishedProtocol(""))
    assert differences(plain, tune="cv", n_views=1, seeds={1}, text=True) == ()
    assert differences(figure(fresh, shots=0), tune="none", n_views=0, seeds={0}, text=True) == ()


def test_tip_adapter_fs_use_of_the_test_split_is_said() -> None:
    tip = FIGURES["tip-adapter-f", "RN50", "few-shot", 16, "dtd", "accuracy"]
    assert tip.accuracy == pytest.approx(0.6655)
    assert tip.protocol.tuned_by == "test"
    assert "test split" in tip.protocol.note
    assert "Seed 1 only" in tip.protocol.note

"""Files beside the code agree with it and with one another."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_pre_commit_runs_the_pinned_ruff() -> None:
    [pinned] = [d for d in PROJECT["optional-dependencies"]["dev"] if d.startswith("ruff==")]
    assert f"rev: v{pinned.removeprefix('ruff==')}" in text(".pre-commit-config.yaml")


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {PROJECT['version']}\n" in text("CITATION.cff")


def test_the_workflow_runs_what_is_run_here() -> None:
    assert "run: .ci/run" in text(".github/workflows/test.yml")
    assert "make test\nmake lint\n" in text(".ci/run")


def test_every_make_target_has_a_line_of_help() -> None:
    makefile = text("Makefile")
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    explained = re.findall(r"^([a-z]+):[^#\n]*## \w", makefile, re.MULTILINE)
    assert set(phony.split()) == set(explained)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    readme = text("README.md")
    assert len(readme.splitlines()) <= 120
    for page in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text(page))
        assert links
        assert not [link for link in links if not (ROOT / link).exists()]

"""Whatever the pages and the README tell a reader to type is typed here.

Blocks of a page run from top to bottom in one folder of their own, which holds `photos/`, the
digits as a folder of pictures, and a store of the digits. The tiny model is the default model.

    console                   commands run; the output shown must be theirs, `…` standing for
                              whatever may differ
    console, class parse      commands are only parsed: they need what is not here
    python                    runs, in one namespace for the page
    python, class parse       is only compiled
    any, with a caption       is written to a file of that name; Python then runs as well
"""

import contextlib
import importlib
import io
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import typer

import cli
from fewshot.automatic import judging
from fewshot.automatic.candidates import Candidates
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.methods import METHODS
from fewshot.report import published
from fewshot.settings import explanations
from tests import forked

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
EVERY: dict[str, type[Any]] = {**METHODS, **TRAINED}
FENCE = re.compile(
    r"^```(?:\{code-block\} )?(?P<language>\w+)\n"
    r"(?P<options>(?::\w+: [^\n]*\n)*)\n?"
    r"(?P<body>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
ELSEWHERE = re.compile(r"<(?:link|script|img|iframe)\b[^>]*\b(?:src|href)=.(?:https?:)?//")
# A setting is explained by a noun or a verb, which can be read without the setting's name.
NO_NOUN = re.compile(r"(?:Before|Behind|Beside|By|Its?|Of|On|Their|Times|What|Whether|Which)\b")
TO_BE_WRITTEN = {  # by who adds a method
    "docs/methods/trusted-mean.md",
    "fewshot/methods/trusted_mean.py",
    "tests/test_trusted_mean.py",
}
ARXIV = re.compile(r"arxiv\.org/abs/(\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    kind: str
    caption: str


def blocks(page: str) -> list[Block]:
    found = []
    for fence in FENCE.finditer((DOCS / page).read_text(encoding="utf-8")):
        options = dict(re.findall(r":(\w+): (.*)", fence["options"]))
        kind, caption = options.pop("class", ""), options.pop("caption", "")
        assert not options, f"{page}: {options}"
        assert kind in ("", "parse"), f"{page}: {kind}"
        found.append(Block(fence["language"], fence["body"], kind, caption))
    return found


def steps(body: str) -> list[tuple[list[str], list[str]]]:
    """The commands of a console block as words, each with the lines of output shown under it."""
    found: list[tuple[list[str], list[str]]] = []
    for line in re.sub(r"\\\n\s*", " ", body).splitlines():
        if line.startswith("$ "):
            found.append((shlex.split(line[2:], comments=True), []))
        elif line.strip():
            found[-1][1].append(line)
    return found


def parse(words: list[str]) -> None:
    """Fail unless there is such a command and it takes these options and arguments."""
    if words[0] != "fewshot":
        return
    group: Any = cli.tree(cli.app)
    assert words[1] in group.commands, " ".join(words)
    with contextlib.suppress(typer.Exit):
        group.commands[words[1]].make_context(words[1], words[2:])


def execute(words: list[str]) -> str:
    """What a command prints, on stdout and stderr."""
    assert words[0] == "fewshot", f"{words[0]} cannot be run here; give the block the class parse"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main(words[1:])
    assert code == 0, f"{shlex.join(words)}: {said.getvalue()}"
    return said.getvalue()


def compare(command: str, shown: list[str], said: str) -> None:
    """Fail unless each line shown is among those said, in that order."""
    lines = iter(said.splitlines())
    for line in shown:
        pattern = ".*".join(map(re.escape, line.rstrip().split("…")))
        assert any(re.fullmatch(pattern, real.rstrip()) for real in lines), (
            f"{command} does not print\n{line}\nbut\n{said}"
        )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, digits_store: Path) -> Path:
    """What every page finds, made once."""
    folder = tmp_path_factory.mktemp("workplace")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as environment:
        environment.delenv("FEWSHOT_STORE", raising=False)
        execute(shlex.split("fewshot demo --photos photos"))
        shutil.copytree(digits_store, "features")
    return folder


@pytest.fixture
def elsewhere(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it to work in, and no trace of what a page does to the program."""
    place = tmp_path / "here"
    shutil.copytree(workplace, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("FEWSHOT_MODEL", "tiny")
    for name in ("FEWSHOT_STORE", "FEWSHOT_DATA"):
        monkeypatch.delenv(name, raising=False)
    few = Candidates(("zero-shot", "gda"), {})  # all that suit take 15 s, and other tests try them
    monkeypatch.setattr(judging, "candidates", lambda *_: few)
    known = dict(METHODS)
    yield place
    METHODS.clear()
    METHODS.update(known)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_what_a_page_tells_to_type_works(page: str, elsewhere: Path) -> None:
    if "--photos photos" in (DOCS / page).read_text(encoding="utf-8"):
        shutil.rmtree("photos")  # the page makes them itself
    module = types.ModuleType("page")  # so that classes defined in a page have one
    sys.modules["page"] = module
    try:
        for block in blocks(page):
            if block.caption.endswith(".py"):  # other blocks may import from the file
                sys.modules[block.caption.removesuffix(".py").replace("/", ".")] = module
            run(page, block, vars(module))
    finally:
        for name in [name for name, one in sys.modules.items() if one is module]:
            del sys.modules[name]


FILES = [(page, one) for page in PAGES for one in blocks(page) if one.caption.endswith(".py")]


@pytest.mark.parametrize(("page", "block"), FILES)
@pytest.mark.parametrize("check", [["check"], ["format", "--check"]])
def test_a_file_of_python_that_a_page_shows_keeps_the_rules_of_style(
    page: str, block: Block, check: list[str]
) -> None:
    ruff = shutil.which("ruff", path=Path(sys.executable).parent)
    if ruff is None:
        pytest.skip("needs ruff")
    command = [ruff, *check, "--no-cache", f"--stdin-filename={block.caption}", "-"]
    done = subprocess.run(command, cwd=ROOT, input=block.body, capture_output=True, text=True)
    assert done.returncode == 0, f"{page}: {done.stdout}{done.stderr}"


def run(page: str, block: Block, namespace: dict[str, Any]) -> None:
    if block.caption:
        file = Path(block.caption)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.body, encoding="utf-8")
    if block.language == "python":
        code = compile(block.body, f"{page}, {block.body.splitlines()[0]}", "exec")
        if block.kind != "parse":
            exec(code, namespace)
    if block.language == "console":
        for words, shown in steps(block.body):
            parse(words)
            if block.kind != "parse":
                said = execute(words)
                compare(shlex.join(words), shown, said)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p}" for p in PAGES)])
def test_options_files_and_names_that_a_page_speaks_of_are_there(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    group: Any = cli.tree(cli.app)
    commands: dict[str, Any] = group.commands
    options = {name: {o for p in one.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
               for name, one in commands.items()}  # fmt: skip
    every = set().union(*options.values())
    for code in re.findall(r"`([^`\n]+)`", text):
        first, _, rest = code.partition(" ")
        command = rest.partition(" ")[0] if first == "fewshot" else first
        if first == "fewshot" and command.isalpha() and command.islower():
            assert command in commands or code == "fewshot feature store part", f"`{code}`"
        if first in ("fewshot", *commands) or code.startswith("--"):
            asked = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code))
            assert asked <= options.get(command, every), f"`{code}`"
        for path in re.findall(r"(?:^| )((?:benchmarks|cache|docs|fewshot|tests)/[\w./+-]*)", code):
            assert (ROOT / path).exists() or path in TO_BE_WRITTEN, f"`{code}`"
        for module in re.findall(r"python -m (benchmarks[.\w]*)", code):
            assert ROOT.joinpath(*module.split(".")).with_suffix(".py").exists(), f"`{code}`"
        if re.fullmatch(r"(?:cache|fewshot)(?:\.\w+)+", code) and not code.endswith(".py"):
            assert pkgutil.resolve_name(code), f"`{code}`"


def readme() -> list[tuple[str, str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_command_of_the_readme_parses() -> None:
    lines = [line.removeprefix("$ ") for _, body in readme() for line in body.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    commands = [line for line in lines if re.match(r"fewshot \S+ ", line)]
    assert len(commands) > 10
    for line in commands:
        parse(shlex.split(line, comments=True))


def test_each_command_has_its_call_in_python_and_each_extra_its_purpose() -> None:
    group: Any = cli.tree(cli.app)
    table = (DOCS / "guide" / "python.md").read_text(encoding="utf-8").split("## ")[0]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE))))
    assert named == set(group.commands)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install = (DOCS / "guide" / "install.md").read_text(encoding="utf-8")
    for extra in project["optional-dependencies"]:
        assert f"'.[{extra}]'" in install, extra


def test_the_python_of_the_readme_runs(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for language, body in readme():
        if language == "python":
            exec(compile(body, "README.md", "exec"), {})
    assert 0.8 < float(capsys.readouterr().out.splitlines()[-1]) < 1


@pytest.mark.parametrize("name", EVERY)
def test_a_method_has_a_page_that_names_its_source_and_shows_its_settings(name: str) -> None:
    page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    method = EVERY[name]
    module = sys.modules[method.__module__].__doc__ or ""
    own, around = ARXIV.findall(method.__doc__ or ""), ARXIV.findall(module)
    assert set(own) <= set(ARXIV.findall(page))
    assert not around or set(own + around) & set(ARXIV.findall(page))
    assert f"<!-- settings {name} -->" in page
    command = "fit" if name in METHODS else "train"
    assert f"$ fewshot {command} {name} " in page
    index = (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    assert f"({name}.md)" in index


def test_each_row_of_the_survey_names_a_method_or_a_reason() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| [^|]+ \| ([^|]+) \|$",
        (DOCS / "methods" / "survey.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) > 40
    for here in rows[2:]:
        named = re.findall(r"\[`(.+?)`\]\(\1\.md\)", here)
        assert set(named) <= EVERY.keys()
        assert named or here.startswith("out of scope: ")


def test_pages_count_the_methods_and_the_published_figures_as_they_are() -> None:
    counted = {
        "README.md": (
            f" {len(METHODS)} methods on cached features and {len(TRAINED)} end-to-end ones,",
            f" {len(published.load()):,}\npublished figures,",
        ),
        "docs/index.md": (
            f" {len(METHODS)} methods. They fit",
            f" {len(TRAINED)} more methods train inside CLIP's towers,",
        ),
        "docs/protocols.md": (f" {len(published.load()):,} published figures ",),
    }
    for page, sentences in counted.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for sentence in sentences:
            assert sentence in text


def test_the_table_of_what_defaults_bring_has_the_rates_that_are_the_defaults() -> None:
    text = (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    section = text.split("### What the defaults bring")[1]
    rates = re.findall(r"^\| \[`(.+?)`\]\(.+?\) \| (\S+) \|", section, re.MULTILINE)
    assert len(rates) > 40
    for name, rate in rates:
        assert float(rate) == asdict(TRAINED[name]())["lr"]


def test_every_setting_of_a_method_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    generated = importlib.import_module("generated")
    for name, method in EVERY.items():
        about = explanations(method)
        for field in fields(method):
            words = about[field.name]
            assert " " in words, f"{field.name} of {name}: {words}"
            assert not NO_NOUN.match(words), f"{field.name} of {name}: {words}"
            assert f"| `{field.name}` | " in generated.settings(name)


@forked.needs_fork
def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    """All pages under the smallest theme, and the first under ours, whose sidebars cost 9 s.

    In a process of its own, for Sphinx changes the program that it is loaded in.
    """
    for needed in ("sphinx", "furo", "myst_parser", "latex2mathml"):
        pytest.importorskip(needed)
    plain, furnished = tmp_path / "plain", tmp_path / "furnished"

    def build() -> int:
        from sphinx.cmd.build import main

        warnings.resetwarnings()  # a deprecation among these libraries is none of ours
        strictly = ["-W", "-n", "--keep-going", "-q", "-d", str(tmp_path / "read"), str(DOCS)]
        code = main(["-E", "-D", "html_theme=basic", *strictly, str(plain)])
        # A warning says that the search index lacks the other pages.
        return code or main([*strictly[1:], str(furnished), str(DOCS / "index.md")])

    process = forked.start(build, err=tmp_path / "err.txt")
    process.join()
    assert process.exitcode == 0, (tmp_path / "err.txt").read_text()
    built = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert len(list(plain.rglob("*.html"))) >= len(PAGES)
    for html in built.values():
        assert not ELSEWHERE.search(html)
        assert "<!-- settings" not in html
        assert "$$" not in html
        assert not re.search(r"<m\w+[^>]*>\\", html), "an equation's command was not understood"
    assert any("<math" in html for html in built.values())
    assert "furo" in built[furnished / "index.html"]
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text("utf-8"))


@pytest.mark.parametrize(
    ("said", "fits"), [("a 1.5 s\nb", True), ("b\na 1.5 s", False), ("a 1.5 s", False)]
)
def test_output_that_a_page_shows_is_looked_for_in_order(said: str, fits: bool) -> None:
    with contextlib.nullcontext() if fits else pytest.raises(AssertionError, match="not print"):
        compare("fewshot x", ["a … s", "b"], said)


@pytest.mark.parametrize(
    "line", ["fewshot fitt gda", "fewshot fit gda --shot 3", "fewshot predict"]
)
def test_a_command_that_does_not_exist_would_be_noticed(line: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  # typer's own are private
        parse(line.split())

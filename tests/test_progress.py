import pytest

from cache import progress as module
from cache.progress import clock, progress, silent_within


def test_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    with progress("dtd: images", 10, done=4) as advance:
        advance(2)
        advance(4)
    captured = capsys.readouterr()
    first, last = captured.err.splitlines()
    assert first.startswith("dtd: images 6/10 ")
    assert first.endswith("left")
    assert last.startswith("dtd: images 10/10 ")
    assert captured.out == ""


def test_lines_are_kept_apart_in_time_but_the_last_always_comes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("images", 100) as advance:
        for _ in range(100):
            advance(1)
    assert len(capsys.readouterr().err.splitlines()) == 1
    with progress("images", 100, done=100) as advance:
        for _ in range(3):
            advance(0)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress("images", 10) as advance:
        advance(10)
    assert "10/10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599, "59m59s"), (7500, "2h05m")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_what_was_done_before_counts_not_toward_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 0.0, 20.0, 20.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with progress("images", 1000, done=900) as advance:
        advance(40)
    assert capsys.readouterr().err == "images 940/1000 2.0/s, 30s left\n"


def test_a_clock_that_starts_before_the_first_item_shows_no_rate_yet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 0.0, 20.0, 20.0, 40.0, 40.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with progress("images", 10) as advance:
        advance(0)
        advance(10)
    assert capsys.readouterr().err == "images 0/10\nimages 10/10 0.2/s\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_names_neither_move_the_cursor_nor_format_the_bar(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "dumb")
    with progress("{0} [bold]x\x1b[31m\u202e: files", 1) as advance:
        advance(1, "[red]\x1b[2J\x9b")
    written = capsys.readouterr().err
    assert r"{0} [bold]x\x1b[31m\u202e: files" in written
    assert r"[red]\x1b[2J\x9b" in written.replace("\n", "")
    assert "\x1b[31m" not in written
    assert "\x1b[2J" not in written


def test_the_time_left_goes_by_costs_where_items_differ(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    ticks = iter([0.0, 0.0, 2.0, 2.0])
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))
    with progress("methods", 3, costs=[1.0, 9.0, 30.0]) as advance:
        advance(1, "now slow")
    assert capsys.readouterr().err == "methods 1/3 0.5/s, 1m18s left now slow\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_work_that_is_done_within_the_patience_shows_nothing(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    with progress("tuning", 2, patience=60.0) as advance:
        advance(2)
    assert capsys.readouterr().err == ""
    with progress("tuning", 2, patience=1e-9) as advance:
        advance(2)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_work_within_work_shows_nothing(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    with progress("methods", 1) as outer:
        with progress("tuning", 7) as inner:
            inner(7, "a note")
        outer(1)
    written = capsys.readouterr().err
    assert "1/1" in written
    assert "tuning" not in written


def test_work_that_shows_its_own_silences_what_is_within(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with silent_within(), progress("tuning", 1) as advance:
        advance(1)
    assert capsys.readouterr().err == ""
    with progress("tuning", 1) as advance:
        advance(1)
    assert "1/1" in capsys.readouterr().err

"""Long host work says how far it is and how long it will take."""

from __future__ import annotations

import sys

from segjax.data import progress


def test_without_a_terminal_lines_tell_count_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    assert list(progress.track(range(3), 3, "Working")) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Working: 1/3, 0 s left"
    assert lines[-1] == "Working: 3/3, took 0 s"


def test_short_work_is_silent_without_a_terminal(capsys):
    assert list(progress.track("abc", 3, "Working")) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_on_a_terminal_a_bar_is_drawn_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress.track(range(4), 4, "Working")) == [0, 1, 2, 3]
    captured = capsys.readouterr()
    assert "Working" in captured.err and captured.out == ""


def test_work_that_calls_back_tells_its_share_and_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with progress.meter("Refining") as told:
        for done in range(5):
            told(done, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Refining: 25%, 0 s left" and len(lines) == 4
    assert lines[-1] == "Refining: took 0 s"


def test_work_that_calls_back_has_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.meter("Refining") as told:
        told(1, 4)
        told(4, 4)
    captured = capsys.readouterr()
    assert "Refining" in captured.err and "100%" in captured.err and captured.out == ""

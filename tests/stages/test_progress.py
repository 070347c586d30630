"""What a long stage says while it runs: rate, time left, and whatever else counts."""

import re

import pytest

from prvr_ray.stages import progress
from prvr_ray.stages.progress import Steps


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""
    monkeypatch.delenv(progress.QUIET, raising=False)
    times = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[0])
    return times


def test_a_line_now_and_then_says_rate_time_left_and_failures(clock, capsys):
    with Steps("ingest", 100, "videos") as steps:
        for _ in range(5):
            clock[0] += 4.0
            steps.advance(5, "12 frames/s, 1 failed")
    assert capsys.readouterr().err.splitlines() == [
        "ingest: 15/100 videos, 1.2 videos/s, 68 s left  12 frames/s, 1 failed",
        "ingest: 25/100 videos, 1.2 videos/s, 60 s left  12 frames/s, 1 failed",
    ]


def test_a_short_stage_says_nothing_and_a_quiet_one_never_does(clock, capsys, monkeypatch):
    with Steps("ingest", 2, "videos") as steps:
        steps.advance(2)
    monkeypatch.setenv(progress.QUIET, "1")
    with Steps("ingest", 2, "videos") as steps:
        clock[0] += 60.0
        steps.advance(2)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_with_rate_and_time_left(clock, monkeypatch):
    shown = []

    class Terminal:
        encoding = "utf-8"

        def isatty(self):
            return True

        def write(self, text):
            shown.append(text)

        def flush(self):
            pass

    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Steps("ingest", 10, "videos") as steps:
        clock[0] += 2.0
        steps.advance(4, "12 frames/s, 1 failed")
    text = re.sub(r"\x1b\[[\d;?]*\w", "", "".join(shown))
    assert "4/10" in text
    assert "2.0 videos/s  12 frames/s, 1 failed" in text

"""Progress: a line now and then in a pipe or a log, a live bar on a terminal, nothing where it is not wanted."""

import contextlib
import os
import pty
import subprocess
import sys

import pytest

from prvr_ray import progress
from prvr_ray.progress import Steps


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set, and progress that is wanted."""
    now = {"s": 100.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now["s"])
    monkeypatch.delenv(progress.QUIET, raising=False)
    return now


def test_a_pipe_gets_whole_lines_with_rate_and_time_left_and_not_too_many(clock, capsys):
    with Steps("ingest", 40, "videos") as steps:
        for _ in range(40):
            clock["s"] += 1
            steps.advance(note="2 failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "ingest: 10/40 videos, 1.0 videos/s, 30 s left  2 failed",
        "ingest: 20/40 videos, 1.0 videos/s, 20 s left  2 failed",
        "ingest: 30/40 videos, 1.0 videos/s, 10 s left  2 failed",
        "ingest: 40/40 videos, 1.0 videos/s, 0 s left  2 failed",
    ]


def test_a_short_step_says_nothing_and_a_long_one_ends_with_its_last_count(clock, capsys):
    with Steps("import", 3, "files") as steps:
        clock["s"] += 9
        steps.advance(3)
    with Steps("score", None, "units") as steps:
        clock["s"] += 11
        steps.advance()
        clock["s"] += 1
        steps.advance(5)
    assert capsys.readouterr().err.splitlines() == ["score: 1 units, 0.1 units/s", "score: 6 units, 0.5 units/s"]


def test_quiet_is_quiet(clock, capsys, monkeypatch):
    monkeypatch.setenv(progress.QUIET, "1")
    with Steps("ingest", 2, "videos") as steps:
        clock["s"] += 60
        steps.advance(2)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_count_rate_and_time_left():
    shown, terminal = pty.openpty()
    script = (
        "import time; from prvr_ray.progress import Steps\n"
        "with Steps('ingest', 4, 'videos') as steps:\n"
        "    for n in range(4): time.sleep(0.2); steps.advance(note='1 [/failed] ' + 'x' * 99)"
    )
    environment = {name: value for name, value in os.environ.items() if name != progress.QUIET}
    process = subprocess.Popen([sys.executable, "-c", script], stderr=terminal, env={**environment, "TERM": "xterm"})
    os.close(terminal)
    text = b""
    with open(shown, "rb", buffering=0) as reader, contextlib.suppress(OSError):  # Linux's word for a closed end
        while part := reader.read(4096):
            text += part
    assert process.wait(timeout=60) == 0
    *_, last = (line for line in text.decode().replace("\r", "\n").splitlines() if "4/4" in line)
    for piece in ("ingest", "━", "0:00:00", "videos/s", "1 [/failed] xxx", "…"):
        assert piece in last

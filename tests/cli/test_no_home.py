"""A container's user that has no entry in the password database and no HOME, as `docker run --user 4242` gives it."""

import subprocess
import sys
from pathlib import Path

import pytest

NO_ENTRY = """
import os, pwd, sys
def no_entry(of): raise KeyError(f"getpwuid(): uid not found: {of}")
pwd.getpwuid = no_entry
os.environ.clear()
os.environ["PATH"] = "/usr/bin:/bin"
sys.path[:0] = sys.argv.pop().split(os.pathsep)
from prvr_ray.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run_without_home(*words: str) -> tuple[int, list[str]]:
    """Exit code and lines of standard error of a command in a process of its own."""
    path = str(Path(__file__).parents[2])
    ran = subprocess.run([sys.executable, "-c", NO_ENTRY, *words, path], capture_output=True, text=True, timeout=120)
    return ran.returncode, ran.stderr.splitlines()


@pytest.mark.parametrize("command", ["train --run none", "tune --study none"])
def test_stages_that_load_ray_train_and_tune_need_no_home(tmp_path, command):
    """Ray looks for the home folder when it is imported; that there is no collection is found after that."""
    code, lines = run_without_home(*command.split(), "--root", str(tmp_path / "none"))
    assert (code, lines) == (2, [f"prvr: no collection at {tmp_path}/none; `prvr ingest` or `prvr import` makes one"])


def test_a_tilde_has_no_meaning_there_and_is_refused_in_one_line():
    code, [line] = run_without_home("status", "--root", "~/videos")
    assert code == 2
    assert "~/videos: there is no home folder here; write the whole path, or set HOME" in line

"""The home folder, also of a user who has none: a container may run under a number that no password database knows."""

import os
from pathlib import Path

_NO_HOME = os.devnull  # no folder, also for root: unlike in a temporary folder, nothing is kept there and lost later


def settle_home() -> None:
    """Give this process and its children a HOME where none can be found.

    Ray Train and Ray Tune look for the home folder when they are imported (`ray.train.constants`) and fail without one,
    though nothing is put there.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = _NO_HOME


def expand_home(path: str) -> Path:
    """The local path that a user names, with `~` replaced by the home folder.

    Raises:
        ValueError: it begins with `~`, and the folder that this means is not known.
    """
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:
        expanded = Path(_NO_HOME)
    if path.startswith("~") and expanded.is_relative_to(_NO_HOME):
        raise ValueError(f"{path}: there is no home folder here; write the whole path, or set HOME")
    return expanded

"""The commands that were run on a collection: one small record for each that wrote something, `ROOT/history/*.json`."""

import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prvr_ray.storage import Store, get_json, open_store, put_json

_FOLDER = "history"
_PACKAGES = ("prvr_ray", "torch", "ray", "open_clip_torch", "av", "pyarrow", "numpy")


def record(root: str, command: str, summary: dict[str, Any]) -> None:
    """Keep a command's summary, with the time and the versions of the packages that decide what it computes."""
    entry = {"command": command, "ended_at": time.time(), "versions": installed_versions(), "summary": summary}
    put_json(open_store(root), f"{_FOLDER}/{time.time_ns():020d}-{command}.json", entry)


def read_history(store: Store) -> list[dict[str, Any]]:
    """All records of a collection, oldest first: command, ended_at (seconds since the epoch), versions, summary."""
    return [get_json(store, item.key) for item in store.list(f"{_FOLDER}/")]


def installed_versions() -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

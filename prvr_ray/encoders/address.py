"""Finds an encoder's files. The hash of the weights identifies an encoder; the name in its spec is only a hint.

A name is MODEL:TAG, MODEL:WEIGHTS or CONFIG.json:WEIGHTS. Files are local paths or URIs. The specs of a collection
give files below its root relative to the root, so that a copied or moved root still finds them.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from prvr_ray.home import expand_home
from prvr_ray.storage import open_store

from .spec import describe_encoder


def find_encoder(spec: Mapping[str, Any], root: str, override: str = "") -> str:
    """Find the encoder of a feature set.

    Args:
        spec: `teacher` or `student` of the feature set's spec.json.
        root: URI of the collection.
        override: name given by the user; empty: look at the path in the spec, then at the same path below the root.

    Returns:
        A name for `load_encoder` of an encoder with the same weights.

    Raises:
        ValueError: no encoder was found, or its weights differ.
    """
    expected = spec["weights_sha256"]
    problems = []
    for name in [override] if override else list(dict.fromkeys(_candidates(spec["name"], root))):
        try:
            found = describe_encoder(make_absolute(name)).weights_sha256
        except ValueError as error:
            problems.append(str(error))
            continue
        if found == expected:
            return make_absolute(name)
        problems.append(f"encoder {name!r} has weights {found[:12]}, the features were made with {expected[:12]}")
    advice = "" if override else "; if its files lie elsewhere now, name them: --encoder MODEL:/path/to/checkpoint"
    raise ValueError(f"{problems[-1]}{advice}")


def make_absolute(name: str) -> str:
    """Make the paths in a name absolute, for processes with another working directory."""
    return _map_files(name, lambda file: file if "://" in file else os.path.abspath(expand_home(file)))


def make_portable(name: str, root: str) -> str:
    """Make a name for a spec: paths below the root become relative to it, others absolute."""
    home = open_store(root).uri.rstrip("/") + "/"
    return _map_files(make_absolute(name), lambda file: file.removeprefix(home))


def _candidates(name: str, root: str) -> Iterator[str]:
    """Yield the names to try: relative to the root, as given, and with the path moved below the present root."""
    home = open_store(root).uri.rstrip("/")
    yield _map_files(name, lambda file: file if "://" in file or os.path.isabs(file) else f"{home}/{file}")
    yield name
    yield _map_files(name, lambda file: _below(home, file))


def _below(home: str, file: str) -> str:
    """Return the longest suffix of a path that exists below the root, or the path itself if none does."""
    store, parts = open_store(home), PurePosixPath(file.partition("://")[2] or file).parts
    for start in range(1, len(parts)):
        if store.exists("/".join(parts[start:])):
            return f"{home}/{'/'.join(parts[start:])}"
    return file


def _map_files(name: str, change: Callable[[str], str]) -> str:
    config, is_local, weights = name.partition(".json:")
    if is_local:
        return f"{change(config + '.json')}:{change(weights)}"
    model, colon, weights = name.partition(":")
    is_file = "/" in weights or os.path.isfile(weights)
    return f"{model}{colon}{change(weights)}" if is_file else name

"""spec.json: what a feature set, an index or a study was made with, and whether another spec is equal to it."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from prvr_ray.schema import FORMAT_VERSION
from prvr_ray.storage import Store, get_json, put_json_if_absent

_NO_MEANINGS: Mapping[str, Any] = {}


def declare_spec(
    store: Store,
    spec: dict[str, Any],
    *,
    may_differ: Collection[str] = (),
    older: Mapping[str, Any] = _NO_MEANINGS,
) -> dict[str, Any]:
    """Put spec.json of a folder, or check that the existing one is equal.

    Args:
        store: the folder of a feature set or an index.
        spec: JSON values; `format_version` is added.
        may_differ, older: see `differences`.

    Returns:
        The spec that is in the folder.

    Raises:
        ValueError: it is another one; the message names each difference.
    """
    wanted = {"format_version": FORMAT_VERSION, **spec}
    existing = put_json_if_absent(store, "spec.json", wanted)
    check_spec(existing, wanted, store.uri, may_differ=may_differ, older=older)
    return existing


def preview_spec(
    store: Store,
    spec: dict[str, Any],
    *,
    may_differ: Collection[str] = (),
    older: Mapping[str, Any] = _NO_MEANINGS,
) -> None:
    """Refuse what `declare_spec` would refuse, and put nothing: for a dry run. A folder without a spec is fine."""
    with contextlib.suppress(FileNotFoundError):
        existing = get_json(store, "spec.json")
        wanted = {"format_version": FORMAT_VERSION, **spec}
        check_spec(existing, wanted, store.uri, may_differ=may_differ, older=older)


def check_spec(
    existing: Any,
    wanted: Any,
    where: str,
    *,
    may_differ: Collection[str] = (),
    older: Mapping[str, Any] = _NO_MEANINGS,
) -> None:
    """Raise ValueError that names each of the `differences`, and where the existing spec lies."""
    found = differences(existing, wanted, may_differ=may_differ, older=older)
    if found:
        raise ValueError(f"{where} was written with other settings: {'; '.join(found)}")


def differences(
    existing: Any, wanted: Any, *, may_differ: Collection[str] = (), older: Mapping[str, Any] = _NO_MEANINGS
) -> list[str]:
    """Compare two specs: the only place that decides whether an existing folder may be appended to or resumed.

    A key that the existing spec lacks was added by a later version of this program. It means what the version that
    wrote the spec did, and so is no difference, unless `older` says that it did something else than is wanted now.
    A key that only the existing spec has is a difference.

    Args:
        existing, wanted: JSON values.
        may_differ: dotted paths that are not compared, such as `teacher.name`.
        older: dotted path -> what versions without that key did.

    Returns:
        One phrase for each difference, `student.dim is 24 there, 32 here`.
    """
    return list(_differences(existing, wanted, "", may_differ, older))


def read_spec(store: Store) -> dict[str, Any]:
    """Read spec.json of a folder.

    Raises:
        ValueError: there is none, or its format_version is newer than this program's.
    """
    try:
        spec = get_json(store, "spec.json")
    except FileNotFoundError:
        raise ValueError(f"nothing at {store.uri}: no spec.json") from None
    if spec["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{store.uri} has format_version {spec['format_version']}, newer than this program's {FORMAT_VERSION}"
        )
    return spec


def _differences(
    existing: Any, wanted: Any, path: str, may_differ: Collection[str], older: Mapping[str, Any]
) -> Iterator[str]:
    if path in may_differ:
        return
    if not (isinstance(existing, dict) and isinstance(wanted, dict)):
        if existing != wanted:
            yield f"{path} is {existing!r} there, {wanted!r} here"
        return
    for key in sorted({*existing, *wanted}):
        below = f"{path}.{key}" if path else key
        ours = wanted.get(key)
        theirs = existing[key] if key in existing else older.get(below, ours)
        yield from _differences(theirs, ours, below, may_differ, older)

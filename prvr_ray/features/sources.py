"""Lists the videos of a folder, an object-store prefix or a manifest of URIs, without downloading them."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from prvr_ray.annotations.rows import KINDS, Columns, Row, kind_of, read_rows
from prvr_ray.collection.metadata import pack_metadata
from prvr_ray.storage import Store, StoredObject, open_store

_MANIFEST_COLUMNS = Columns(("uri",), ("video_id", "split"), ignore_others=True)
_REQUESTS_AT_ONCE = 16
_HIDDEN = re.compile(r"(^|/)\.[^./]")  # such as macOS's `._clip.mp4`, which contains no video


SOURCES = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("split", pa.string()),  # null if the source names none
        ("missing", pa.string()),  # why the file is missing
        ("metadata", pa.string()),  # of VIDEOS; null if the source gives none
    ]
)


def list_sources(videos: str, extensions: list[str], *, anonymous: bool = False) -> tuple[pa.Table, int]:
    """List the videos of a source, sorted by video_id.

    Args:
        videos: a folder or URI prefix, whose files with one of the extensions are listed; or a manifest, a .parquet,
            .csv or .jsonl file with a column `uri` and optionally `video_id` and `split`; its other columns are
            metadata of the videos.
        anonymous: send no credentials (for public buckets).

    Returns:
        The videos (SOURCES), and the number of files in a folder that were skipped: hidden, or with another extension.

    Raises:
        ValueError: there is no video; or the manifest cannot be read, has no `uri` or repeats a video_id.
    """
    if kind_of(videos):
        return _from_manifest(videos, anonymous), 0
    store = open_store(videos, anonymous=anonymous)
    objects = store.list()
    endings = tuple(f".{extension.lower()}" for extension in extensions)
    kept = [item for item in objects if item.key.lower().endswith(endings) and _is_usable(item.key)]
    if not kept:
        raise ValueError(f"no videos at {videos}: {_describe_files(objects)}")
    nothing = pa.nulls(len(kept), pa.string())
    columns: dict[str, Any] = {
        "video_id": [item.key for item in kept],
        "uri": [f"{store.uri}/{item.key}" for item in kept],
        "size": [item.size for item in kept],
        "etag": [item.etag for item in kept],
    }
    columns |= dict.fromkeys(("split", "missing", "metadata"), nothing)
    return pa.table(columns, schema=SOURCES), len(objects) - len(kept)


def _describe_files(objects: list[StoredObject]) -> str:
    """Describe the files that were found instead of videos, with advice."""
    kinds = Counter(PurePosixPath(item.key).suffix.lower() or "no ending" for item in objects)
    found = ", ".join(f"{count} with {kind}" for kind, count in kinds.most_common(5))
    advice = f"--videos takes a folder, a URI prefix, or a manifest ({', '.join(KINDS)})"
    if {f".{kind}" for kind in KINDS} & set(kinds):
        advice += ", by its own path, not its folder's"
    if {".tar", ".zip", ".gz", ".tgz", ".7z"} & set(kinds):
        advice += "; unpack archives first"
    if not objects:
        return f"no files; {advice}"
    return f"{len(objects)} files ({found}), none with an ending of ingest.extensions; {advice}"


def open_parent(uri: str, *, anonymous: bool = False) -> tuple[Store, str]:
    """Open a file's folder as a store, and return it with the file's key; the first of repeated slashes separates."""
    folder = uri.rpartition("/")[0].rstrip("/")
    return open_store(folder or "/", anonymous=anonymous), uri[len(folder) + 1 :]


def _is_usable(name: str) -> bool:
    """Whether a name is visible and valid UTF-8, so that it can be an id: local file names may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not _HIDDEN.search(name)


def _from_manifest(manifest: str, anonymous: bool) -> pa.Table:
    rows = [row for row in _manifest_rows(manifest, anonymous) if row.values]
    if not rows:
        raise ValueError(f"{manifest} has no row with a `uri`")
    uris = [_value(row, "uri") for row in rows]
    places = [_place(uri, manifest, row.where, anonymous) for uri, row in zip(uris, rows, strict=True)]
    objects = _look_up(places)
    ids = [_value(row, "video_id", uri) for row, uri in zip(rows, uris, strict=True)]
    _refuse_repeats(ids, rows)
    found = [objects[place] for place in places]
    columns = {
        "video_id": ids,
        "uri": [f"{store.uri}/{key}" for store, key in places],
        "size": [item.size if isinstance(item, StoredObject) else 0 for item in found],
        "etag": [item.etag if isinstance(item, StoredObject) else "" for item in found],
        "split": [_value(row, "split", "") or None for row in rows],
        "missing": [None if isinstance(item, StoredObject) else item for item in found],
        "metadata": pack_metadata([row.others for row in rows], is_text=kind_of(manifest) == "csv"),
    }
    return pa.table(columns, schema=SOURCES).sort_by("video_id")


def _refuse_repeats(ids: list[str], rows: list[Row]) -> None:
    seen: set[str] = set()
    for video_id, row in zip(ids, rows, strict=True):
        if video_id in seen:
            raise ValueError(f"{row.where} gives video_id {video_id!r} to two rows; name a `video_id` for each")
        seen.add(video_id)


def _place(uri: str, manifest: str, where: str, anonymous: bool) -> tuple[Store, str]:
    """Return store and key of a file in a manifest; relative paths start from the manifest's folder."""
    if "://" not in uri and not uri.startswith("/"):
        uri = f"{open_parent(manifest)[0].uri}/{uri}"
    try:
        return open_parent(uri, anonymous=anonymous)
    except ValueError as error:
        raise ValueError(f"{where}: uri: {error}") from None


def _look_up(places: list[tuple[Store, str]]) -> dict[tuple[Store, str], StoredObject | str]:
    """Return the object at each place, or why it is missing. Each folder is listed once, under its keys' common prefix.

    If listing a folder is not permitted, each of its files is checked instead: permission to read them suffices.
    """
    keys: dict[Store, list[str]] = {}
    for store, key in places:
        keys.setdefault(store, []).append(key)
    objects: dict[tuple[Store, str], StoredObject | str] = dict.fromkeys(places, "there is no such file")
    single: list[tuple[Store, str]] = []
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:  # one folder per video means one request per video
        for store, listed in zip(keys, pool.map(_listed, keys, keys.values()), strict=True):
            if isinstance(listed, PermissionError):
                single += [(store, key) for key in keys[store]]
            elif isinstance(listed, OSError):
                objects |= dict.fromkeys([(store, key) for key in keys[store]], str(listed))
            else:
                objects |= {(store, item.key): item for item in listed if (store, item.key) in objects}
        objects |= zip(single, pool.map(_looked_at, single), strict=True)
    return objects


def _listed(store: Store, keys: list[str]) -> list[StoredObject] | OSError:
    """List the objects of a folder that share the keys' common prefix, or return the error."""
    try:
        return store.list(os.path.commonprefix(keys))  # noqa: RUF071  characters are meant
    except OSError as error:
        return error


def _looked_at(place: tuple[Store, str]) -> StoredObject | str:
    store, key = place
    try:
        return store.stat(key)
    except OSError as error:
        return str(error)


def _manifest_rows(manifest: str, anonymous: bool) -> Iterator[Row]:
    store, key = open_parent(manifest if "/" in manifest else f"./{manifest}", anonymous=anonymous)
    return read_rows(store.get(key), manifest, str(kind_of(key)), _MANIFEST_COLUMNS)


def _value(row: Row, column: str, default: str | None = None) -> str:
    """Return a value as text: ids may be numbers."""
    value = row.values.get(column, default)
    if value is None:
        raise ValueError(f"{row.where}: {column} is empty")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{row.where}: {column} is {value!r}, not a string")
    return str(value)

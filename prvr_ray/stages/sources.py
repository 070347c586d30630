"""Which videos a user means: a folder, a prefix of an object store, or a manifest of URIs. Nothing is downloaded."""

import csv
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from prvr_ray.corpus.records import parse_json
from prvr_ray.storage import Store, StoredObject, open_store, read_table

_MANIFESTS = ("parquet", "csv", "jsonl")
_LISTS_AT_ONCE = 10  # as many connections as boto3 keeps


@dataclass(frozen=True)
class Source:
    """One video file. `split` is None where the source names none; `missing` says why there is no such file."""

    video_id: str
    uri: str
    size: int = 0
    etag: str = ""
    split: str | None = None
    missing: str | None = None


def list_sources(videos: str, extensions: list[str]) -> tuple[list[Source], int]:
    """Find the videos, by video_id.

    Args:
        videos: a folder or URI prefix, of which the files with one of the extensions count; or a manifest, a .parquet,
            .csv or .jsonl file with a column `uri` and perhaps `video_id` and `split`.

    Returns:
        The sources, and how many files of a folder were skipped for their name.

    Raises:
        ValueError: there is nothing, or the manifest cannot be read, has no `uri` or gives one video_id to two rows.
    """
    if PurePath(videos).suffix[1:].lower() in _MANIFESTS:
        return _from_manifest(videos), 0
    objects = open_store(videos).list()
    if not objects:
        raise ValueError(f"no files at {videos}; --videos takes a folder, a URI prefix, or a manifest {_MANIFESTS}")
    wanted = tuple(f".{extension.lower()}" for extension in extensions)
    kept = [item for item in objects if item.key.lower().endswith(wanted) and _is_text(item.key)]
    home = open_store(videos).uri
    sources = [Source(item.key, f"{home}/{item.key}", item.size, item.etag) for item in kept]
    return sources, len(objects) - len(kept)


def parent_store(uri: str) -> tuple[Store, str]:
    """The store of the folder that a file lies in, and the file's key there; of several slashes the first divides."""
    folder = uri.rpartition("/")[0].rstrip("/")
    return open_store(folder or "/"), uri[len(folder) + 1 :]


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8 and can be an id; a local file's name may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _from_manifest(manifest: str) -> list[Source]:
    rows = [row for row in _manifest_rows(manifest) if row.get("uri")]
    if not rows:
        raise ValueError(f"{manifest} has no row with a `uri`")
    places = [_place(str(row["uri"]), manifest) for row in rows]
    objects = _look_up(places)
    found: dict[str, Source] = {}
    for row, (store, key) in zip(rows, places, strict=True):
        item = objects[store, key]
        known = {"size": item.size, "etag": item.etag} if isinstance(item, StoredObject) else {"missing": item}
        video_id, split = str(row.get("video_id") or row["uri"]), row.get("split") or None
        source = Source(video_id, f"{store.uri}/{key}", split=split, **known)
        if video_id in found:
            raise ValueError(f"{manifest} gives video_id {video_id!r} to two rows; name a `video_id` for each")
        found[video_id] = source
    return [found[video_id] for video_id in sorted(found)]


def _place(uri: str, manifest: str) -> tuple[Store, str]:
    """Store and key of a manifest's file; a relative one lies beside the manifest."""
    if "://" in uri or uri.startswith("/"):
        return parent_store(uri)
    return parent_store(f"{parent_store(manifest)[0].uri}/{uri}")


def _look_up(places: list[tuple[Store, str]]) -> dict[tuple[Store, str], StoredObject | str]:
    """The object at each place, or why there is none. Each folder is listed once, no further than its files' names."""
    keys: dict[Store, list[str]] = {}
    for store, key in places:
        keys.setdefault(store, []).append(key)
    objects: dict[tuple[Store, str], StoredObject | str] = dict.fromkeys(places, "there is no such file")
    with ThreadPoolExecutor(_LISTS_AT_ONCE) as pool:  # a folder for each video is one answer to wait for each
        for store, listed in zip(keys, pool.map(_listed, keys, keys.values()), strict=True):
            if isinstance(listed, str):
                objects |= dict.fromkeys([(store, key) for key in keys[store]], listed)
            else:
                objects |= {(store, item.key): item for item in listed if (store, item.key) in objects}
    return objects


def _listed(store: Store, keys: list[str]) -> list[StoredObject] | str:
    """What lies in a folder under the names' common beginning, or why it cannot be listed."""
    try:
        return store.list(os.path.commonprefix(keys))  # noqa: RUF071  characters are meant
    except OSError as error:
        return str(error)


def _manifest_rows(manifest: str) -> list[dict[str, Any]]:
    store, key = parent_store(manifest if "/" in manifest else f"./{manifest}")
    if key.endswith(".parquet"):
        return read_table(store, key).to_pylist()
    try:
        text = store.get(key).decode("utf-8-sig")
        return list(csv.DictReader(io.StringIO(text))) if key.endswith(".csv") else list(_json_rows(text))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{manifest}: {error}") from None


def _json_rows(text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = parse_json(line, f"line {number}")
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: a JSON object with `uri` is wanted, this is {line.strip()[:40]!r}")
            yield row

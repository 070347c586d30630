"""Which videos a user means: a folder, a prefix of an object store, or a manifest of URIs. Nothing is downloaded."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prvr_ray.storage import Store, StoredObject, open_store

_MANIFESTS = ("parquet", "csv", "jsonl")


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
        ValueError: there is nothing, or the manifest has no `uri`, or it gives one video_id to two files.
    """
    if videos.rpartition(".")[2].lower() in _MANIFESTS:
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
    """The store of the folder that a file lies in, and the file's key there."""
    folder, _, key = uri.rpartition("/")
    return open_store(folder), key


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
    home = manifest.rpartition("/")[0] or "."
    found: dict[str, Source] = {}
    listings: dict[str, dict[str, StoredObject]] = {}
    for row in rows:
        source = _manifest_source(row, home, listings)
        if found.setdefault(source.video_id, source).uri != source.uri:
            raise ValueError(f"{manifest} gives video_id {source.video_id!r} to two files; name a `video_id` for each")
    return [found[video_id] for video_id in sorted(found)]


def _manifest_source(row: dict[str, Any], home: str, listings: dict[str, dict[str, StoredObject]]) -> Source:
    """Look a manifest's file up; each folder is listed once."""
    uri = str(row["uri"])
    if "://" not in uri and not uri.startswith("/"):
        uri = f"{open_store(home).uri}/{uri}"
    video_id, split = str(row.get("video_id") or row["uri"]), row.get("split") or None
    try:
        store, key = parent_store(uri)
        if store.uri not in listings:
            listings[store.uri] = {item.key: item for item in store.list()}
    except (OSError, ValueError) as error:
        return Source(video_id, uri, split=split, missing=str(error))
    item = listings[store.uri].get(key)
    if item is None:
        return Source(video_id, uri, split=split, missing="there is no such file")
    return Source(video_id, uri, item.size, item.etag, split)


def _manifest_rows(manifest: str) -> Iterator[dict[str, Any]]:
    store, key = parent_store(manifest if "/" in manifest else f"./{manifest}")
    data = store.get(key)
    if key.endswith(".parquet"):
        yield from pq.read_table(pa.BufferReader(data)).to_pylist()
    elif key.endswith(".csv"):
        yield from csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
    else:
        yield from (json.loads(line) for line in data.decode("utf-8-sig").splitlines() if line.strip())

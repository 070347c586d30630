"""Matches captions with videos: turns names into video ids, and keeps every video in one split.

`prvr import` applies it to new captions, `prvr ingest` to captions that were imported before their videos.
"""

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import Collection

Row = dict[str, Any]


def use_known_ids(queries: list[Row], video_ids: set[str]) -> list[str]:
    """Replace the names of videos in queries by video ids, which include folders and extensions.

    Args:
        queries: rows of schema.QUERIES, changed in place. A name that matches several videos is left unchanged.

    Returns:
        The ids of queries that name an unknown video. They are kept: the video may be ingested later.
    """
    ids = VideoNames(video_ids)
    unknown = []
    for query in queries:
        names, moments = query["video_ids"] or [], query["moments"] or []
        query["video_ids"] = list(dict.fromkeys(ids.find(name) for name in names))
        query["moments"] = [moment | {"video_id": ids.find(moment["video_id"])} for moment in moments]
        if not video_ids.issuperset(query["video_ids"]):
            unknown.append(query["query_id"])
    return unknown


class VideoNames:
    """Finds the video for a name. A name must match exactly one video; strict rules are tried first.

    The exact id; then ignoring `./`, backslashes, surrounding spaces and Unicode form (NFC or NFD); then without folder
    or extension; then both of these again ignoring case; then a longer path that ends with the id.
    """

    def __init__(self, video_ids: Iterable[str]):
        self._ids = set(video_ids)
        self._plain = _unique((_plain(video_id), video_id) for video_id in self._ids)
        self._short = _unique((alias, video_id) for video_id in self._ids for alias in _short_names(video_id))
        self._plain_caseless, self._short_caseless = (
            _unique((alias.casefold(), video_id) for video_id in self._ids for alias in names(video_id))
            for names in (lambda video_id: {_plain(video_id)}, _short_names)
        )
        self._found: dict[str, str] = {}  # cache: many captions name the same video

    def find(self, name: str) -> str:
        """Return the video id, or the name itself if it matches no video or several."""
        if name not in self._found:
            self._found[name] = name if name in self._ids else self._look_up(_plain(name)) or name
        return self._found[name]

    def _look_up(self, plain: str) -> str | None:
        # None marks a name that several videos share: a looser rule must not choose among them.
        for aliases, key in (
            (self._plain, plain),
            (self._short, plain),
            (self._plain_caseless, plain.casefold()),
            (self._short_caseless, plain.casefold()),
        ):
            if key in aliases:
                return aliases[key]
        parts = plain.split("/")
        for start in range(1, len(parts) - 1):  # /data/videos/kitchen/a.mp4; the file name alone is too ambiguous
            if found := self._plain.get("/".join(parts[start:])):
                return found
        return None


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for alias, video_id in pairs:
        found[alias] = video_id if found.get(alias, video_id) == video_id else None
    return found


def _plain(name: str) -> str:
    path = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _short_names(video_id: str) -> set[str]:
    path = PurePosixPath(_plain(video_id))
    return {path.name, path.stem, str(path.with_suffix("")) if path.name else ""}


def collect_splits(queries: Iterable[Row]) -> dict[str, str]:
    """Map video_id to the split of its queries.

    Raises:
        ValueError: a video has queries in two splits.
    """
    said: dict[str, str] = {}
    for query in queries:
        for video_id in query["video_ids"] if query["split"] else ():
            if said.setdefault(video_id, query["split"]) != query["split"]:
                raise ValueError(
                    f"video {video_id} has captions in the splits {said[video_id]} and {query['split']} "
                    f"(query {query['query_id']}): a video belongs to one split"
                )
    return said


def resplit(collection: Collection, videos: pa.Table, splits: dict[str, str]) -> int:
    """Move the collection's videos to the splits of their captions; return how many moved."""
    rows = videos.to_pylist()
    moved = [
        row | {"split": splits[row["video_id"]]}
        for row in rows
        if splits.get(row["video_id"], row["split"]) != row["split"]
    ]
    if moved:
        collection.video_shards.append(pa.Table.from_pylist(moved, collection.video_shards.schema))
    return len(moved)


def match_captions(collection: Collection, coming: Iterable[str]) -> int:
    """Replace video names by ids in captions that were imported before their videos.

    Existing videos move to the splits of these captions.

    Args:
        coming: ids of the videos that are about to be added; removed ones are ignored.

    Returns:
        The number of captions that changed.

    Raises:
        ValueError: a video has queries in two splits, under two of its names.
    """
    existing, videos = collection.queries(), collection.videos()
    known = pa.concat_arrays([videos["video_id"].combine_chunks(), pa.array(coming, pa.string())])
    known = known.filter(pc.invert(pc.is_in(known, collection.removed())))
    if pc.all(pc.is_in(pc.list_flatten(existing["video_ids"]), known)).as_py() is not False:
        return 0  # every caption names a video by its id
    queries = existing.to_pylist()
    use_known_ids(queries, set(known.to_pylist()))
    before = existing["video_ids"].to_pylist()
    changed = [query for query, names in zip(queries, before, strict=True) if query["video_ids"] != (names or [])]
    if changed:
        resplit(
            collection, videos, collect_splits(queries)
        )  # first: if interrupted here, the captions still differ and the next run repeats this
        collection.query_shards.append(pa.Table.from_pylist(changed, collection.query_shards.schema))
    return len(changed)

"""How a collection's captions and videos fit together: the videos' names, and one split for each video. No Ray here.

`imports` uses it for what a file says, `ingest` for captions that were imported before their videos were known.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from prvr_ray.collection import Collection

Row = dict[str, Any]


def use_known_ids(queries: list[Row], video_ids: set[str]) -> list[str]:
    """Turn the names of videos in queries into ids, which have folders and endings.

    Args:
        queries: rows of schema.QUERIES, changed in place. A name that fits several videos stays as it is.

    Returns:
        The ids of queries that name an unknown video. They are kept: the video may come later.
    """
    by_alias: dict[str, list[str]] = {}
    for video_id in video_ids:
        path = PurePosixPath(video_id)
        for alias in {path.name, path.stem}:
            by_alias.setdefault(alias, []).append(video_id)
    ids = {alias: found[0] for alias, found in by_alias.items() if len(found) == 1}
    ids |= {video_id: video_id for video_id in video_ids}
    unknown = []
    for query in queries:
        names, moments = query["video_ids"] or [], query["moments"] or []
        if any(name not in ids for name in names):
            unknown.append(query["query_id"])
        query["video_ids"] = [ids.get(name, name) for name in names]
        query["moments"] = [
            moment | {"video_id": ids.get(moment["video_id"], moment["video_id"])} for moment in moments
        ]
    return unknown


def splits_said(queries: Iterable[Row]) -> dict[str, str]:
    """video_id -> the split that its queries say.

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
    """Move the collection's videos to the splits of their captions; returns how many moved."""
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
    """Let captions that were imported before their videos name them by their ids, as an import after them would.

    Args:
        coming: ids of the videos that are about to be put; those of removed ones do not count.

    Returns:
        How many captions have changed. Videos that stand already move to the splits of these.

    Raises:
        ValueError: a video has queries in two splits, under two of its names.
    """
    standing, videos = collection.queries(), collection.videos()
    queries = standing.to_pylist()
    removed = set(collection.removed().to_pylist())
    use_known_ids(queries, {*videos["video_id"].to_pylist(), *coming} - removed)
    before = standing["video_ids"].to_pylist()
    changed = [query for query, names in zip(queries, before, strict=True) if query["video_ids"] != (names or [])]
    if changed:
        resplit(collection, videos, splits_said(queries))  # first: if this is cut short, the captions still differ
        collection.query_shards.append(pa.Table.from_pylist(changed, collection.query_shards.schema))
    return len(changed)

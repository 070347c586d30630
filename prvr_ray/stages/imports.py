"""`prvr import`: captions with their moments, or released features, into a collection. No Ray is needed.

A repeated import puts only what is new or changed. What files say is read in corpus.annotations and corpus.released.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.collection import Collection, FeatureSet, ShardFolder, declare_spec, newer_than, open_collection
from prvr_ray.config import IngestSettings
from prvr_ray.corpus.annotations import read_annotations
from prvr_ray.corpus.released import Released, ReleasedCaption, check_splits, open_released
from prvr_ray.corpus.splits import split_of
from prvr_ray.stages.captions import resplit, splits_said, use_known_ids
from prvr_ray.stages.progress import Steps
from prvr_ray.storage import open_store, put_json

_SHARD_BYTES = 64 * 2**20
_NUM_NAMED = 10  # examples in a summary

Row = dict[str, Any]


def import_collection(layout: str, source: str, root: str, *, name: str | None = None) -> dict[str, Any]:
    """Bring captions, or released features with their captions, into a collection.

    Args:
        layout: `released`, or a layout of corpus.annotations.
        source: a file, a folder, or a URI of either.
        root: the collection.
        name: released: the dataset, where the source holds several. Else: the beginning of query ids that the files
            do not give.

    Returns:
        Counts of queries, videos and moments; what was left out, with examples; and where it lies.

    Raises:
        ValueError: the source cannot be used; the message names the file and, in a file of lines, the line.
    """
    collection = open_collection(root)
    with _local(source) as path:
        if layout == "released":
            return _import_released(path, collection, name)
        return _import_captions(layout, path, collection, name)


def _import_captions(layout: str, path: Path, collection: Collection, name: str | None) -> dict[str, Any]:
    read = read_annotations(layout, path, name)
    videos = collection.videos()
    unknown = use_known_ids(read.queries, set(videos["video_id"].to_pylist()))
    splits = _settle_splits(read.queries, collection, videos)
    counts = _put_changed(collection.query_shards, "query_id", collection.queries(), read.queries)
    left_out = {"captions_without_text": read.without_text}
    if len(videos):  # else they all come later
        left_out["captions_of_unknown_video"] = unknown
    return {
        "queries": counts,
        "videos": len({video_id for query in read.queries for video_id in query["video_ids"]}),
        "videos_resplit": resplit(collection, videos, splits),
        "moments": sum(len(query["moments"]) for query in read.queries),
        "windows_left_out": read.num_dropped,
        "windows_with": read.defects,
        "left_out": _named(left_out),
        "output": collection.query_shards.store.uri,
    }


def _settle_splits(queries: list[Row], collection: Collection, videos: pa.Table) -> dict[str, str]:
    """Give every query a split: its own, else that of the video's other queries, of the video, or of its id's hash.

    Returns:
        video_id -> the split that its queries say.

    Raises:
        ValueError: a video has queries in two splits.
    """
    standing = {row["query_id"]: row for row in collection.queries().to_pylist()}
    said = splits_said((standing | {query["query_id"]: query for query in queries}).values())
    known = dict(zip(videos["video_id"].to_pylist(), videos["split"].to_pylist(), strict=True))
    shares = IngestSettings().split_shares
    for query in queries:
        video_id = query["video_ids"][0]
        query["split"] = query["split"] or said.get(video_id) or known.get(video_id) or split_of(video_id, shares)
    return said


def _import_released(path: Path, collection: Collection, name: str | None) -> dict[str, Any]:
    features = collection.features()
    with open_released(path, name) as released:
        declare_spec(features.store, released.spec)
        complete, failed = _put_video_features(released, collection, features)
        captions = _put_query_features(released, features, complete)
        check_splits(released, captions)
        rows = [
            {
                "query_id": caption.caption_id,
                "text": caption.text,
                "video_ids": [caption.video_id],
                "split": caption.split,
                "moments": [],
            }
            for caption in captions
        ]
        counts = _put_changed(collection.query_shards, "query_id", collection.queries(), rows)
        put_json(features.store, "left-out.json", released.excluded)
        return {
            "dataset": released.files.dataset,
            "queries": counts,
            "videos": {"imported": len(complete), "failed": len(failed)},
            "left_out": _named(released.excluded),
            "left_out_list": f"{features.store.uri}/left-out.json",
            "output": features.store.uri,
        }


def _put_video_features(
    released: Released, collection: Collection, features: FeatureSet
) -> tuple[set[str], dict[str, str]]:
    """Put what is missing of the videos' features; returns the ids of whole videos, and of failed ones the class."""
    known = {row["video_id"]: row for row in collection.videos().to_pylist()}
    removed = set(collection.removed().to_pylist())
    rows = [_video_row(released, known, *item) for item in released.splits.items() if item[0] not in removed]
    _put_changed(collection.video_shards, "video_id", collection.videos(), rows)
    added_at = {row["video_id"]: row["added_at"] for row in rows}
    complete, failed = _standing(features, released.video_etag)
    wanted = [video_id for video_id in added_at if video_id not in complete and video_id not in failed]
    versions = ((row, added_at[row["video_id"]]) for row in released.video_rows(wanted))
    stamped = (row | {"etag": released.video_etag, "added_at": time_s} for row, time_s in versions)
    _put_rows(features.video_shards, stamped, "segments")
    complete, failed = _standing(features, released.video_etag)
    for video_id in removed & released.splits.keys():
        released.exclude("video_removed", video_id)
    for video_id, error_class in failed.items():
        released.exclude(f"video_{error_class}", video_id)
    return complete, failed


def _video_row(released: Released, known: dict[str, Row], video_id: str, split: str) -> Row:
    """A row of schema.VIDEOS without a file: only features of it were released."""
    before = known.get(video_id, {})
    is_same = before.get("etag") == released.video_etag
    row = dict.fromkeys(schema.VIDEOS.names)
    return row | {
        "video_id": video_id,
        "etag": released.video_etag,
        "split": split,
        "added_at": before["added_at"] if is_same else newer_than(before.get("added_at"), time.time()),
        "removed": False,
    }


def _standing(features: FeatureSet, etag: str) -> tuple[set[str], dict[str, str]]:
    """Which videos are whole, and which failed why, of one version of the source."""
    rows = features.segments()
    rows = rows.filter(pc.equal(rows["etag"], etag))
    failed = rows.filter(rows["failed"]).select(["video_id", "error_class"])
    return (
        set(features.complete(rows)["video_id"].to_pylist()),
        dict(zip(failed["video_id"].to_pylist(), failed["error_class"].to_pylist(), strict=True)),
    )


def _put_query_features(released: Released, features: FeatureSet, video_ids: set[str]) -> list[ReleasedCaption]:
    """Put what is missing of the queries' features; returns the captions that have both video and query features."""
    usable = []
    for caption in released.captions:
        if caption.video_id in video_ids:
            usable.append(caption)
        else:
            released.exclude("caption_of_unusable_video", caption.caption_id)
    encoded = _encoded(features)
    wanted = (caption for caption in usable if encoded.get(caption.caption_id) != released.text_hash(caption))
    _put_rows(features.query_shards, released.query_rows(wanted), "queries")
    encoded = _encoded(features)
    return [caption for caption in usable if encoded.get(caption.caption_id) == released.text_hash(caption)]


def _encoded(features: FeatureSet) -> dict[str, str]:
    rows = features.queries()
    return dict(zip(rows["query_id"].to_pylist(), rows["text_hash"].to_pylist(), strict=True))


def _put_rows(folder: ShardFolder, rows: Iterator[Row], unit: str) -> None:
    """Stream rows with vectors into shards of some 64 MiB."""
    batch: list[Row] = []
    num_bytes = 0
    with Steps("import", None, unit) as steps:
        for row in rows:
            batch.append(row)
            num_bytes += len(row.get("teacher") or b"") + len(row.get("student") or b"")
            if num_bytes >= _SHARD_BYTES:
                folder.append(pa.Table.from_pylist(batch, folder.schema))
                batch, num_bytes = [], 0
            steps.advance()
        if batch:
            folder.append(pa.Table.from_pylist(batch, folder.schema))


def _put_changed(folder: ShardFolder, key: str, standing: pa.Table, rows: list[Row]) -> dict[str, int]:
    """Put those rows that are not there, or that differ from what is there, as one shard."""
    known = {row[key]: row for row in standing.to_pylist()}
    new = [row for row in rows if row[key] not in known]
    changed = [row for row in rows if row[key] in known and row != known[row[key]]]
    if new or changed:
        folder.append(pa.Table.from_pylist(new + changed, folder.schema))
    return {"new": len(new), "changed": len(changed), "unchanged": len(rows) - len(new) - len(changed)}


def _named(left_out: dict[str, list[str]]) -> dict[str, Any]:
    """Counts with a few names, for a summary."""
    return {reason: {"count": len(names), "such_as": names[:_NUM_NAMED]} for reason, names in left_out.items() if names}


@contextlib.contextmanager
def _local(source: str) -> Iterator[Path]:
    """A local path that shows the source's files under their names; remote ones are downloaded."""
    if "://" not in source:
        yield Path(source).expanduser()
        return
    parent, _, name = source.rstrip("/").rpartition("/")
    store = open_store(parent)
    keys = [item.key for item in store.list(name) if item.key == name or item.key.startswith(f"{name}/")]
    if not keys:
        raise ValueError(f"there is nothing at {source}")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prvr-")))
        for key in keys:
            link = folder / key
            if not link.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{source}: the key {key!r} leads out of the folder")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(stack.enter_context(store.local_file(key)))
        yield folder / name

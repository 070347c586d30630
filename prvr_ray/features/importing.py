"""`prvr import`: imports captions with moments, or released features, into a collection.

A repeated import writes only new and changed rows. `prvr_ray.annotations` reads the files.
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
from prvr_ray.annotations.captions import Annotations, read_annotations
from prvr_ray.annotations.released import Released, ReleasedCaption, check_splits, open_released
from prvr_ray.annotations.splits import split_of
from prvr_ray.collection import (
    CaptionSources,
    Collection,
    FeatureSet,
    ShardFolder,
    caption_sources,
    declare_spec,
    newer_than,
    open_collection,
    remove_captions,
    unmatched_captions,
)
from prvr_ray.config import IngestSettings
from prvr_ray.features.caption_ids import Replacement, keep_ids, plan_replacement
from prvr_ray.features.caption_matching import collect_splits, resplit, use_known_ids
from prvr_ray.home import expand_home
from prvr_ray.progress import Steps
from prvr_ray.storage import open_store, put_json

_SHARD_BYTES = 64 * 2**20
_CLIP_WORDS = 75  # CLIP's context of 77 tokens, less start and end; a word is at least one token
_NUM_NAMED = 10  # examples in a summary

Row = dict[str, Any]


def import_collection(
    layout: str, source: str, root: str, *, name: str | None = None, replace: bool = False
) -> dict[str, Any]:
    """Import captions, or released features with their captions, into a collection.

    Importing a source again replaces its previous import: captions that are no longer in it are removed.

    Args:
        layout: `released`, or a layout of annotations.captions.
        source: a file, a folder, or a URI of either.
        root: URI of the collection.
        name: of the source, and prefix of generated ids; default: the layout and the file's name. For `released`: the
            dataset, if the source holds several.
        replace: allow a source to lose more than half of its captions.

    Returns:
        Counts of queries, videos and moments; what was left out, with examples; and the output's URI.

    Raises:
        ValueError: the source cannot be used (the message names the file and, for text files, the line); another source
            uses an id for a different caption; or most of the source's captions would be removed.
    """
    collection = open_collection(root)
    with _local(source) as path:
        if layout == "released":
            return _import_released(path, collection, name, replace)
        return _import_captions(layout, path, collection, name, replace)


def _import_captions(
    layout: str, path: Path, collection: Collection, name: str | None, replace: bool
) -> dict[str, Any]:
    known, videos = caption_sources(collection), collection.videos()
    existing = {row["query_id"]: row for row in collection.queries().to_pylist()}
    source = name or f"{layout}-{path.stem}"
    read, own = _read_source(layout, path, name, source, existing, known)
    use_known_ids(read.queries, set(videos["video_id"].to_pylist()))
    keep_ids(read.queries, read.generated, existing, own)
    plan = plan_replacement(source, read.queries, existing, own, known, replace)
    rest = {query_id: row for query_id, row in existing.items() if query_id not in plan.removed}
    splits = _settle_splits(read.queries, rest, videos)
    counts = _put_captions(collection, known, source, plan, existing, layout, str(path))
    left_out = {"captions_without_text": read.without_text}
    unmatched = None
    if len(videos):  # else all videos are still to come, and `prvr ingest` reports unmatched captions
        video_ids = {*videos["video_id"].to_pylist(), *collection.removed().to_pylist()}
        left_out["captions_of_unknown_video"] = [
            query["query_id"] for query in plan.rows if not video_ids.issuperset(query["video_ids"])
        ]
        unmatched = unmatched_captions(pa.Table.from_pylist(plan.rows, schema.QUERIES), video_ids)
    return {
        "source": source,
        **counts,
        "videos": len({video_id for query in read.queries for video_id in query["video_ids"]}),
        "videos_resplit": resplit(collection, videos, splits),
        "moments": sum(len(query["moments"]) for query in read.queries),
        "windows_left_out": read.num_dropped,
        "windows_with": read.defects,
        "left_out": _named(left_out),
        **({"unmatched": unmatched} if unmatched else {}),
        **_long_texts(collection, plan.rows),
        "output": collection.query_shards.store.uri,
    }


def _long_texts(collection: Collection, rows: list[Row]) -> dict[str, Any]:
    """Find captions that the encoder truncates; without features yet, those too long for CLIP's usual 77 tokens."""
    names, texts = [row["query_id"] for row in rows], [row["text"] for row in rows]
    try:
        spec = collection.features().spec()
    except ValueError:
        found = [name for name, text in zip(names, texts, strict=True) if len(text.split()) > _CLIP_WORDS]
        return _named({f"texts_over_{_CLIP_WORDS}_words": found})
    from prvr_ray.encoders.text_length import (
        find_long_texts,  # imports torch, which is not needed without features
    )

    return find_long_texts(spec["teacher"], names, texts)


def _read_source(
    layout: str, path: Path, name: str | None, source: str, existing: dict[str, Row], known: CaptionSources
) -> tuple[Annotations, set[str]]:
    """Read the captions of a source, and return them with the ids of its previous import.

    Earlier versions recorded no sources and generated ids that begin with the file's name. Such ids are kept.
    """
    read = read_annotations(layout, path, name)
    beginnings = tuple({f"{query_id.partition('/')[0]}/" for query_id in read.generated})
    own = known.captions.get(source) or {
        query_id for query_id in existing if query_id.startswith(beginnings or "\0") and query_id not in known.owners
    }
    has_old_ids = any(query_id.startswith(beginnings or "\0") for query_id in own)
    return (read if name or has_old_ids else read_annotations(layout, path, source)), own


def _put_captions(
    collection: Collection,
    known: CaptionSources,
    source: str,
    plan: Replacement,
    existing: dict[str, Row],
    layout: str,
    uri: str,
) -> dict[str, Any]:
    """Write the changes of a source. The record comes last, so that an interrupted import can simply be repeated."""
    counts = _put_changed(collection.query_shards, "query_id", existing, plan.rows)
    remove_captions(collection, plan.removed)
    query_ids = [row["query_id"] for row in plan.rows]
    known.record(source, query_ids, layout, uri)
    others = sorted({other for query_id in query_ids for other in known.owners.get(query_id, ())} - {source})
    return {
        "queries": counts,
        "queries_removed": len(plan.removed),
        **({"same_captions_in": others} if others else {}),
    }


def _settle_splits(queries: list[Row], existing: dict[str, Row], videos: pa.Table) -> dict[str, str]:
    """Give every query a split: its own, else that of the video's other queries, of the video, or of its id's hash.

    Returns:
        video_id -> the split of its queries.

    Raises:
        ValueError: a video has queries in two splits.
    """
    said = collect_splits((existing | {query["query_id"]: query for query in queries}).values())
    known = dict(zip(videos["video_id"].to_pylist(), videos["split"].to_pylist(), strict=True))
    shares = IngestSettings().split_shares
    for query in queries:
        video_id = query["video_ids"][0]
        query["split"] = query["split"] or said.get(video_id) or known.get(video_id) or split_of(video_id, shares)
    return said


def _import_released(path: Path, collection: Collection, name: str | None, replace: bool) -> dict[str, Any]:
    features, known = collection.features(), caption_sources(collection)
    existing = {row["query_id"]: row for row in collection.queries().to_pylist()}
    with open_released(path, name) as released:
        source = f"released-{released.files.dataset}"
        own = known.captions.get(source, set())
        plan_replacement(source, _caption_rows(released.captions), existing, own, known, replace)  # before vectors
        declare_spec(features.store, released.spec)
        complete, failed = _put_video_features(released, collection, features)
        captions = _put_query_features(released, features, complete)
        check_splits(released, captions)
        plan = plan_replacement(source, _caption_rows(captions), existing, own, known, replace)
        counts = _put_captions(collection, known, source, plan, existing, "released", str(path))
        put_json(features.store, "left-out.json", released.excluded)
        return {
            "dataset": released.files.dataset,
            "source": source,
            **counts,
            "videos": {"imported": len(complete), "failed": len(failed)},
            "left_out": _named(released.excluded),
            "left_out_list": f"{features.store.uri}/left-out.json",
            "output": features.store.uri,
        }


def _caption_rows(captions: list[ReleasedCaption]) -> list[Row]:
    return [
        {
            "query_id": caption.caption_id,
            "text": caption.text,
            "video_ids": [caption.video_id],
            "split": caption.split,
            "moments": [],
        }
        for caption in captions
    ]


def _put_video_features(
    released: Released, collection: Collection, features: FeatureSet
) -> tuple[set[str], dict[str, str]]:
    """Write missing video features; return the ids of complete videos, and the error class of each failed one."""
    known = {row["video_id"]: row for row in collection.videos().to_pylist()}
    removed = set(collection.removed().to_pylist())
    rows = [_video_row(released, known, *item) for item in released.splits.items() if item[0] not in removed]
    _put_changed(collection.video_shards, "video_id", known, rows)
    added_at = {row["video_id"]: row["added_at"] for row in rows}
    complete, failed = _existing(features, released.video_etag)
    pending = [video_id for video_id in added_at if video_id not in complete and video_id not in failed]
    versions = ((row, added_at[row["video_id"]]) for row in released.video_rows(pending))
    stamped = (row | {"etag": released.video_etag, "added_at": time_s} for row, time_s in versions)
    _put_rows(features.video_shards, stamped, "segments")
    complete, failed = _existing(features, released.video_etag)
    for video_id in removed & released.splits.keys():
        released.exclude("video_removed", video_id)
    for video_id, error_class in failed.items():
        released.exclude(f"video_{error_class}", video_id)
    return complete, failed


def _video_row(released: Released, known: dict[str, Row], video_id: str, split: str) -> Row:
    """Make a row of schema.VIDEOS without a file: only the features were released."""
    before = known.get(video_id, {})
    is_same = before.get("etag") == released.video_etag
    row = dict.fromkeys(schema.VIDEOS.names)
    return row | {
        "video_id": video_id,
        "etag": released.video_etag,
        "split": split,
        "added_at": before["added_at"] if is_same else newer_than(before.get("added_at"), time.time()),
        "removed": False,
        "metadata": before.get("metadata"),
    }


def _existing(features: FeatureSet, etag: str) -> tuple[set[str], dict[str, str]]:
    """Return the complete videos of one version of the source, and the error class of each failed one."""
    rows = features.segments()
    rows = rows.filter(pc.equal(rows["etag"], etag))
    failed = rows.filter(rows["failed"]).select(["video_id", "error_class"])
    return (
        set(features.complete(rows)["video_id"].to_pylist()),
        dict(zip(failed["video_id"].to_pylist(), failed["error_class"].to_pylist(), strict=True)),
    )


def _put_query_features(released: Released, features: FeatureSet, video_ids: set[str]) -> list[ReleasedCaption]:
    """Write missing query features; return the captions that have both video and query features."""
    usable = []
    for caption in released.captions:
        if caption.video_id in video_ids:
            usable.append(caption)
        else:
            released.exclude("caption_of_unusable_video", caption.caption_id)
    features.add_query_version(released.query_etag)
    encoded = _encoded(features)
    pending = (caption for caption in usable if encoded.get(caption.caption_id) != released.text_hash(caption))
    _put_rows(features.query_shards, released.query_rows(pending), "queries")
    encoded = _encoded(features)
    return [caption for caption in usable if encoded.get(caption.caption_id) == released.text_hash(caption)]


def _encoded(features: FeatureSet) -> dict[str, str]:
    rows = features.queries()
    return dict(zip(rows["query_id"].to_pylist(), rows["text_hash"].to_pylist(), strict=True))


def _put_rows(folder: ShardFolder, rows: Iterator[Row], unit: str) -> None:
    """Stream rows with vectors into shards of about 64 MiB."""
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


def _put_changed(folder: ShardFolder, key: str, known: dict[str, Row], rows: list[Row]) -> dict[str, int]:
    """Write new and changed rows as one shard. known: key -> existing row."""
    new = [row for row in rows if row[key] not in known]
    changed = [row for row in rows if row[key] in known and row != known[row[key]]]
    if new or changed:
        folder.append(pa.Table.from_pylist(new + changed, folder.schema))
    return {"new": len(new), "changed": len(changed), "unchanged": len(rows) - len(new) - len(changed)}


def _named(left_out: dict[str, list[str]]) -> dict[str, Any]:
    """Return counts with a few names each, for a summary."""
    return {reason: {"count": len(names), "such_as": names[:_NUM_NAMED]} for reason, names in left_out.items() if names}


@contextlib.contextmanager
def _local(source: str) -> Iterator[Path]:
    """Yield a local path with the source's files under their own names; remote files are downloaded."""
    if "://" not in source:
        yield expand_home(source)
        return
    parent, _, name = source.rstrip("/").rpartition("/")
    store = open_store(parent)
    keys = [item.key for item in store.list(name) if item.key == name or item.key.startswith(f"{name}/")]
    if not keys:
        raise ValueError(f"there are no files at {source}")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prvr-")))
        for key in keys:
            link = folder / key
            if not link.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{source}: the key {key!r} leads out of the folder")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(stack.enter_context(store.local_file(key)))
        yield folder / name

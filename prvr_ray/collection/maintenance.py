"""Maintenance of a collection: compact, gc, remove, status. All of it is safe while others read and write.

Compaction puts larger shards first and then one record of what they replace; a reader sees the old shards, or the new
ones, or both with the same rows. Only gc deletes: long after, and nothing that an unfinished plan names.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.collection import (
    REPLACED,
    Collection,
    FeatureSet,
    ShardFolder,
    by_shard,
    caption_sources,
    existing_collection,
    newer_than,
    newest_queries,
    newest_videos,
    newest_windows,
    of_current_files,
    remove_captions,
    unmatched_captions,
    with_columns,
)
from prvr_ray.collection.features import count_partial
from prvr_ray.collection.history import read_history
from prvr_ray.collection.manifest import ManifestShard, newest_manifest, read_manifest, replace_shards
from prvr_ray.storage import Store, delete_unfinished, get_json, make_shard_name, put_json, read_table

TARGET_BYTES = 192 * 2**20  # of a compacted shard; sorting one takes some three times as much memory
RETENTION_DAYS = 7.0  # a reader that listed the old shards, or a job about to put its plan, may still want them
_LONGEST_PUT_S = 3600.0
_FINISHED = ("finished.json", "summary.json")  # beside a plan.json: that job is done


@dataclass(frozen=True)
class _Table:
    """A folder of shards. `counting` finds the live rows, located; `order` sorts the rows of a new shard."""

    name: str
    folder: ShardFolder
    counting: Callable[[ShardFolder], pa.Table]
    order: tuple[str, ...]


def compact(root: str, *, target_bytes: int = TARGET_BYTES) -> dict[str, Any]:
    """Put larger, sorted shards in place of small neighbours, without superseded rows.

    Args:
        root: the collection.
        target_bytes: of a new shard, about.

    Returns:
        For each table that changed: shards replaced, shards put, rows left out.

    Raises:
        ValueError: there is no such collection, or a shard cannot be read.
    """
    collection = existing_collection(root)
    done = {table.name: _compact_table(table, target_bytes) for table in _tables(collection)}
    return {"compacted": {name: counts for name, counts in done.items() if counts}, "output": collection.store.uri}


def gc(root: str, *, retention_days: float = RETENTION_DAYS) -> dict[str, Any]:
    """Delete shards that a compaction replaced, and what killed writers left on a local disk.

    Args:
        root: the collection.
        retention_days: what was replaced later than this many days ago stays.

    Returns:
        Counts of shards and bytes deleted, of shards kept as too young, and of those that each unfinished plan keeps.

    Raises:
        ValueError: there is no such collection.
    """
    collection = existing_collection(root)
    plans = _unfinished_plans(collection.store)
    before = time.time() - retention_days * 86_400
    counts: Counter[str] = Counter()
    kept_for: Counter[str] = Counter()
    for table in _tables(collection):
        _delete_replaced(table.folder.store, before, plans, counts, kept_for)
    unfinished = delete_unfinished(collection.store, min(before, time.time() - _LONGEST_PUT_S))
    return {
        "shards_deleted": counts["shards_deleted"],
        "bytes_deleted": counts["bytes_deleted"],
        "shards_kept_as_young": counts["shards_kept_as_young"],
        "shards_kept_for_plans": dict(kept_for),
        "unfinished_files_deleted": unfinished,
        "output": collection.store.uri,
    }


def remove(
    root: str, video_id: str | None = None, *, query: str | None = None, source: str | None = None
) -> dict[str, Any]:
    """Remove a video from every answer, or a caption, or all captions of a source: tombstones that all readers honour.

    The next compaction drops a removed video's features. A caption that another source brought too stays.

    Args:
        video_id, query, source: one of the three.

    Raises:
        ValueError: the collection has no such video, caption or source; or not one of the three is given.
    """
    if sum(bool(given) for given in (video_id, query, source)) != 1:
        raise ValueError("remove takes one of VIDEO_ID, --query QUERY_ID and --source NAME")
    collection = existing_collection(root)
    if video_id:
        return _remove_video(collection, root, video_id)
    known = caption_sources(collection)
    existing = collection.queries()["query_id"].to_pylist()
    if query:
        if query not in existing:
            raise ValueError(f"query {query!r} is not in {root}")
        remove_captions(collection, [query])
        return {"removed": query, "output": collection.query_shards.store.uri}
    if not known.captions.get(str(source)):
        names = ", ".join(sorted(known.captions)) or "none"
        raise ValueError(f"no source {source!r} in {root}; sources: {names}")
    gone = sorted(query_id for query_id in existing if known.owners.get(query_id) == [source])
    remove_captions(collection, gone)
    known.record(str(source), [])
    return {"removed": source, "queries_removed": len(gone), "output": collection.query_shards.store.uri}


def _remove_video(collection: Collection, root: str, video_id: str) -> dict[str, Any]:
    videos = collection.videos()
    rows = videos.filter(pc.equal(videos["video_id"], video_id)).to_pylist()
    if not rows:
        was_removed = video_id in collection.removed().to_pylist()
        raise ValueError(f"video {video_id!r} " + ("was removed before" if was_removed else f"is not in {root}"))
    tombstone = rows[0] | {"removed": True, "added_at": newer_than(rows[0]["added_at"], time.time())}
    collection.video_shards.append(pa.Table.from_pylist([tombstone], schema.VIDEOS))
    return {"removed": video_id, "output": collection.video_shards.store.uri}


def status(root: str, *, features: str = "default") -> dict[str, Any]:
    """Count videos and captions, and list runs, indexes and scores.

    Args:
        root: the collection.
        features: the feature set to which `ingested`, `failed` and `missing` refer.

    Returns:
        videos: total, ingested, failed, missing (of total), skipped (files of the last source that are no videos),
        by_error_class, and if parts of some could not be decoded partial and partial_examples; captions: total,
        encoded, changed_since_encoded, by_source, and `unmatched` where some name no video; runs, indexes and scores:
        name -> what there is of each.

    Raises:
        ValueError: there is no such collection.
    """
    collection = existing_collection(root)
    runs, indexes, scores = (_children(collection.store, folder) for folder in ("runs", "index", "scores"))
    return {
        "videos": _count_videos(collection, features),
        "captions": _count_captions(collection, features),
        "runs": {name: {"finished": _is_finished(keys)} for name, keys in runs.items()},
        "indexes": {name: {"shards": _num_shards(keys)} for name, keys in indexes.items()},
        "scores": {
            name: {"finished": _is_finished(keys), "shards": _num_shards(keys)} for name, keys in scores.items()
        },
    }


def _count_captions(collection: Collection, features: str) -> dict[str, Any]:
    """Captions in all and of each source, those that are not encoded, and those that name no video."""
    queries, known = collection.queries(), caption_sources(collection)
    matched = collection.features(features).match_queries(queries)
    existing = set(queries["query_id"].to_pylist())
    counts = {
        "total": len(queries),
        "encoded": len(matched.rows),
        "changed_since_encoded": len(matched.stale),
        "by_source": {source: len(existing & ids) for source, ids in sorted(known.captions.items())},
    }
    video_ids = {*collection.videos()["video_id"].to_pylist(), *collection.removed().to_pylist()}
    unmatched = unmatched_captions(queries, video_ids) if video_ids else None
    return counts | ({"unmatched": unmatched} if unmatched else {})


def _count_videos(collection: Collection, features: str) -> dict[str, Any]:
    videos = collection.videos()
    feature_set = collection.features(features)
    rows = of_current_files(feature_set.segments(), videos)
    whole = feature_set.complete(rows)
    complete = set(whole["video_id"].to_pylist())
    failures = rows.filter(rows["failed"]).select(["video_id", "error_class"]).to_pylist()
    failed = {row["video_id"]: row["error_class"] for row in failures if row["video_id"] not in complete}
    ingests = [entry["summary"] for entry in read_history(collection.store) if entry["command"] == "ingest"]
    return {
        "total": len(videos),
        "ingested": len(complete),
        "failed": len(failed),
        "missing": len(videos) - len(complete) - len(failed),
        "skipped": ingests[-1]["skipped"] if ingests else 0,
        "by_error_class": dict(Counter(failed.values()).most_common()),
        **count_partial(whole),
    }


def _children(store: Store, folder: str) -> dict[str, set[str]]:
    """The folders below one: name -> keys of the files in it, relative to it."""
    found: dict[str, set[str]] = {}
    for item in store.list(f"{folder}/"):
        name, _, key = item.key.removeprefix(f"{folder}/").partition("/")
        if key:
            found.setdefault(name, set()).add(key)
    return found


def _is_finished(keys: set[str]) -> bool:
    return not keys.isdisjoint(_FINISHED)


def _num_shards(keys: set[str]) -> int:
    return sum(key.endswith(".parquet") for key in keys)


def _unfinished_plans(store: Store) -> dict[str, set[str]]:
    """Plans of jobs that may still read what they name: key -> all strings in it, shard names among them."""
    plans = {}
    for folder in ("runs", "tune", "scores"):
        for name, keys in _children(store, folder).items():
            if "plan.json" in keys and not _is_finished(keys):
                plans[f"{folder}/{name}/plan.json"] = set(_strings(get_json(store, f"{folder}/{name}/plan.json")))
    return plans


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.rpartition("/")[2]
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _delete_replaced(
    store: Store, before: float, plans: dict[str, set[str]], counts: Counter[str], kept_for: Counter[str]
) -> None:
    """Delete what was replaced before a time (seconds since the epoch) in one folder, and count."""
    sizes = {item.key: item.size for item in store.list()}
    manifest = read_manifest(store) if newest_manifest(sizes) else None
    listed = manifest.shards if manifest else {}  # of a compaction that was killed before it put its manifest
    for key in [key for key in sizes if key.startswith(REPLACED)]:
        record = get_json(store, key)
        existing = [name for name in record["replaced"] if name in sizes and name not in listed]
        if record["replaced_at"] >= before:
            counts["shards_kept_as_young"] += len(existing)
            continue
        if sizes.keys().isdisjoint(record["replaced"]):  # an earlier gc deleted them: no listing holds both
            store.delete(key)
        for name in existing:
            wanted_by = [plan for plan, names in plans.items() if name in names]
            kept_for.update(wanted_by)
            if not wanted_by:
                store.delete(name)
                counts.update(shards_deleted=1, bytes_deleted=sizes[name])


def _tables(collection: Collection) -> Iterator[_Table]:
    """All folders of shards that can be compacted."""
    yield _Table("videos", collection.video_shards, newest_videos, ("video_id",))
    yield _Table("queries", collection.query_shards, newest_queries, ("query_id",))
    for name in _children(collection.store, "features"):
        features = collection.features(name)
        segments, queries = partial(_segments, features), partial(_queries, features)
        yield _Table(f"features/{name}/videos", features.video_shards, segments, ("video_id", "segment"))
        yield _Table(f"features/{name}/queries", features.query_shards, queries, ("query_id",))
    for name in _children(collection.store, "index"):
        folder = ShardFolder(collection.store.child(f"index/{name}"), schema.INDEX)
        windows = partial(newest_windows, removed=collection.removed())
        yield _Table(f"index/{name}", folder, windows, ("video_id", "window"))


def _segments(features: FeatureSet, folder: ShardFolder) -> pa.Table:
    return replace(features, video_shards=folder).segments()


def _queries(features: FeatureSet, folder: ShardFolder) -> pa.Table:
    return replace(features, query_shards=folder).queries()


def _compact_table(table: _Table, target_bytes: int) -> dict[str, int]:
    """Replace groups of neighbours; returns nothing where nothing is gained."""
    pinned = replace(table.folder, names=tuple(table.folder.live()))  # a shard that comes meanwhile stays as it is
    total = pinned.scan([table.order[0]])["shard"].value_counts().to_pylist()
    num_rows = {item["values"]: item["counts"] for item in total}
    counting = dict(by_shard(table.counting(pinned)))
    done, manifest = Counter[str](), read_manifest(table.folder.store)
    for group in _groups(table.folder, pinned.live(), target_bytes):
        dropped = sum(num_rows.get(name, 0) - len(counting.get(name, ())) for name in group)
        if len(group) == 1 and not dropped:
            continue
        read = ((name, read_table(table.folder.store, name)) for name in group if name in counting)
        parts = [with_columns(rows, table.folder.schema).take(counting[name]) for name, rows in read]
        put = {}
        if parts:
            rows = pa.concat_tables(parts).sort_by([(column, "ascending") for column in table.order])
            put[table.folder.append(rows, _name_after(group[-1]))] = len(rows)
        # At once: of a compaction that is killed the groups that it did stay done.
        record = {"replaced": group, "by": list(put), "replaced_at": time.time()}
        put_json(table.folder.store, make_shard_name("replaced").replace(".parquet", ".json"), record)
        if manifest:  # after the record: were this job killed in between, readers would keep the old shards
            sizes = {item.key: item.size for item in table.folder.store.list()}
            shards = {name: ManifestShard(num_rows, sizes[name]) for name, num_rows in put.items()}
            manifest = replace_shards(table.folder.store, manifest, group, shards)
        done.update(shards_replaced=len(group), shards_put=len(put), rows_left_out=dropped)
    return dict(done)


def _groups(folder: ShardFolder, names: list[str], target_bytes: int) -> Iterator[list[str]]:
    """Cut the sorted shards into runs of neighbours of at most target_bytes, or of one larger shard."""
    sizes = {item.key: item.size for item in folder.store.list()}
    group: list[str] = []
    for name in names:
        if group and sum(sizes[member] for member in [*group, name]) > target_bytes:
            yield group
            group = []
        group.append(name)
    if group:
        yield group


def _name_after(name: str) -> str:
    """Make a name that sorts right after `name`: readers that prefer rows by shard name then choose as before."""
    return f"{name.removesuffix('.parquet').partition('~')[0]}~{uuid.uuid4().hex[:8]}.parquet"

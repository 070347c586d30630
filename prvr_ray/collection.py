"""One collection as readers see it: the folders of ROOT, which of several rows counts, and what has been removed.

Rows are only ever added, in shards. Where a video or a segment stands in several rows, every reader here resolves it
the same way: newest source first, then success before failure, then the first shard name. Compaction
records and tombstones are honoured here and nowhere else. No vectors are computed, and no URI is opened but through
`prvr_ray.storage`.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.schema import FORMAT_VERSION, unpack_times, unpack_vectors
from prvr_ray.storage import (
    Store,
    check_name,
    get_json,
    new_name,
    open_store,
    put_json_if_absent,
    read_table,
    table_to_bytes,
)

REPLACED = "replaced-"  # prefix of a compaction record, a JSON list of shard names
_PARALLEL_READS = 16  # a scan reads footers and a few small columns: on object storage it waits, it does not compute
_SMALL = [name for name in schema.FEATURE_VIDEOS.names if name not in ("timestamps_s", "teacher", "student")]


@dataclass(frozen=True)
class VideoFeatures:
    """One video, its segments joined. `student` is `teacher` itself where one encoder serves both.

    teacher: (num_teacher_frames, teacher dim) float16, unnormalised. student: (F, student dim) float16.
    timestamps_s: (F,) float64, of the student's frames.
    """

    video_id: str
    etag: str
    added_at: float
    duration_s: float
    timestamps_s: np.ndarray
    teacher: np.ndarray
    student: np.ndarray


@dataclass(frozen=True)
class QueryFeatures:
    """One query. teacher: (teacher dim,) float16, unnormalised. tokens: (T, token dim) float16."""

    query_id: str
    teacher: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class ShardFolder:
    """A folder of Parquet shards with one schema. With `names`, exactly those shards: a plan's."""

    store: Store
    schema: pa.Schema
    names: tuple[str, ...] | None = None

    def live(self) -> list[str]:
        """Names of the shards that count, sorted: all but those that a compaction replaced."""
        if self.names is not None:
            return list(self.names)
        objects = [item.key for item in self.store.list()]
        try:
            records = [get_json(self.store, key) for key in objects if key.startswith(REPLACED)]
        except FileNotFoundError:  # gc took a record away, and long before it the shards that it named
            return self.live()
        replaced = {name for record in records for name in record["replaced"]}
        return [key for key in objects if key.endswith(".parquet") and key not in replaced]

    def append(self, table: pa.Table, name: str | None = None) -> str:
        """Put a table as one new shard and return its name.

        Raises:
            ValueError: the table does not have this folder's columns.
        """
        name = name or new_name("shard")
        self.store.put(name, table_to_bytes(table.select(self.schema.names).cast(self.schema)))
        return name

    def scan(self, columns: list[str] | None = None) -> pa.Table:
        """All rows of the live shards, some columns of them, with `shard` (name) and `row` (within the shard) added."""
        with ThreadPoolExecutor(_PARALLEL_READS) as readers:
            tables = list(readers.map(lambda name: _located(read_table(self.store, name, columns), name), self.live()))
        wanted = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        empty = _located(wanted.empty_table(), "")
        return pa.concat_tables([empty, *tables]).combine_chunks()


@dataclass(frozen=True)
class Collection:
    """One ROOT: a local folder or s3://bucket/prefix. With names, exactly those shards of its tables: a plan's."""

    store: Store
    video_names: tuple[str, ...] | None = None
    query_names: tuple[str, ...] | None = None

    def plan(self) -> dict[str, list[str]]:
        """The shards that stand now, for a plan.json."""
        return {"videos": self.video_shards.live(), "queries": self.query_shards.live()}

    def pinned(self, plan: dict[str, list[str]]) -> "Collection":
        """This collection, reading exactly a plan's shards; removals count whenever they came."""
        return replace(self, video_names=tuple(plan["videos"]), query_names=tuple(plan["queries"]))

    def videos(self) -> pa.Table:
        """The current row of every video that has not been removed, by video_id; schema VIDEOS."""
        rows = newest_videos(self.video_shards)
        rows = rows.filter(pc.invert(rows["removed"])).select(schema.VIDEOS.names)
        return rows if self.video_names is None else rows.filter(pc.invert(pc.is_in(rows["video_id"], self.removed())))

    def removed(self) -> pa.Array:
        """The ids of removed videos: no reader may show them."""
        rows = newest_videos(replace(self, video_names=None).video_shards)
        return rows.filter(rows["removed"])["video_id"].combine_chunks()

    def queries(self, split: str | None = None) -> pa.Table:
        """The current row of every query, by query_id; schema QUERIES."""
        rows = newest_queries(self.query_shards).select(schema.QUERIES.names)
        return rows if split is None else rows.filter(pc.equal(rows["split"], split))

    def features(self, name: str = "default") -> "FeatureSet":
        """The feature set of that name, there or not.

        Raises:
            ValueError: a name that is no single folder's.
        """
        check_name("features", name)
        store = self.store.child(f"features/{name}")
        return FeatureSet(
            self,
            store,
            ShardFolder(store.child("videos"), schema.FEATURE_VIDEOS),
            ShardFolder(store.child("queries"), schema.FEATURE_QUERIES),
        )

    @property
    def video_shards(self) -> ShardFolder:
        return ShardFolder(self.store.child("videos"), schema.VIDEOS, self.video_names)

    @property
    def query_shards(self) -> ShardFolder:
        return ShardFolder(self.store.child("queries"), schema.QUERIES, self.query_names)


@dataclass(frozen=True)
class FeatureSet:
    """features/<set>: a spec, one row per segment of a video, one row per query."""

    collection: Collection
    store: Store
    video_shards: ShardFolder
    query_shards: ShardFolder

    def spec(self) -> dict[str, Any]:
        """The spec that the set was written with.

        Raises:
            ValueError: there is no such set, or it was written by a newer format_version.
        """
        return read_spec(self.store)

    def segments(self) -> pa.Table:
        """The row that counts of every segment, failures included, without vectors: FEATURE_VIDEOS' small columns,
        `shard` and `row`. Of a changed video only the newest source that was read; no removed video."""
        rows = _of_newest_files(self.video_shards.scan(_SMALL), self.collection.removed())
        rows = rows.append_column("failed", pc.is_valid(rows["error_class"]))
        order = [("failed", "ascending"), ("shard", "ascending"), ("row", "ascending")]
        return first_of(rows, ["video_id", "segment"], order)

    def complete(self, segments: pa.Table | None = None) -> pa.Table:
        """The rows of `segments` that belong to whole videos: no failure, and every segment up to is_last."""
        rows = self.segments() if segments is None else segments
        good = rows.filter(pc.invert(rows["failed"]))
        last = good.filter(good["is_last"]).group_by("video_id").aggregate([("segment", "min")])
        good = good.filter(pc.less_equal(good["segment"], _looked_up(good, last, "segment_min")))
        counts = good.group_by("video_id").aggregate([("segment", "count"), ("segment", "max")])
        is_whole = pc.equal(
            pc.add(_looked_up(good, counts, "segment_max"), 1), _looked_up(good, counts, "segment_count")
        )
        kept = good.filter(is_whole)
        return kept.sort_by([("shard", "ascending"), ("row", "ascending")])

    def read_videos(self, rows: pa.Table, columns: tuple[str, ...] = ("teacher", "student")) -> Iterator[VideoFeatures]:
        """Stream whole videos, shard by shard; a video comes when the last of its segments has been read.

        Segments of videos that were decoded at the same time lie in the same few shards, whose names say nothing about
        when. Ingest takes videos by their ids, so shards in that order leave few videos waiting for the rest of them.

        Args:
            rows: rows of `complete()`, all segments of each video that is wanted.
            columns: which vectors to read; those left out come as (0, dim) arrays.
        """
        spec = self.spec()
        wanted = [
            "video_id",
            "segment",
            "etag",
            "added_at",
            "duration_s",
            "timestamps_s",
            *_stored(spec, columns),
        ]
        missing = {item["values"]: item["counts"] for item in rows["video_id"].value_counts().to_pylist()}
        waiting: dict[str, list[dict[str, Any]]] = {}
        in_shard = dict(by_shard(rows))
        for name in rows.sort_by([("video_id", "ascending"), ("shard", "ascending")])["shard"].unique().to_pylist():
            table = read_table(self.video_shards.store, name, wanted).take(in_shard[name])
            for row in _rows(table):
                video_id = row["video_id"].as_py()
                waiting.setdefault(video_id, []).append(row)
                missing[video_id] -= 1
                if not missing[video_id]:
                    yield _join(waiting.pop(video_id), spec, columns)

    def queries(self) -> pa.Table:
        """The row that counts of every encoded query: query_id, text_hash, num_tokens, `shard`, `row`."""
        rows = self.query_shards.scan(["query_id", "text_hash", "num_tokens"])
        return first_of(rows, ["query_id"], [("shard", "descending"), ("row", "descending")])

    def read_queries(self, rows: pa.Table) -> Iterator[QueryFeatures]:
        """Stream the queries of `rows` (of `queries()`), shard by shard."""
        spec = self.spec()
        for name, in_shard in by_shard(rows):
            table = read_table(self.query_shards.store, name, ["query_id", "teacher", "student"]).take(in_shard)
            for row in _rows(table):
                teacher_1D = unpack_vectors(row["teacher"], spec["teacher"]["dim"])
                tokens_TD = unpack_vectors(row["student"], spec["student"]["token_dim"])
                yield QueryFeatures(row["query_id"].as_py(), teacher_1D[0], tokens_TD)

    def plan(self) -> dict[str, list[str]]:
        """The shards that stand now, for a plan.json."""
        return {"videos": self.video_shards.live(), "queries": self.query_shards.live()}

    def pinned(self, plan: dict[str, list[str]]) -> "FeatureSet":
        """This set, reading exactly a plan's shards."""
        return replace(
            self,
            video_shards=replace(self.video_shards, names=tuple(plan["videos"])),
            query_shards=replace(self.query_shards, names=tuple(plan["queries"])),
        )


def open_collection(root: str) -> Collection:
    """Open a ROOT: a local folder or a URI. Nothing is read or created."""
    return Collection(open_store(root))


def existing_collection(root: str) -> Collection:
    """Open a ROOT that must hold something.

    Raises:
        ValueError: there is nothing.
    """
    collection = open_collection(root)
    try:
        known = collection.video_shards.live() or collection.query_shards.live()
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    if not known:
        raise ValueError(f"no collection at {collection.store.uri}; `prvr ingest` or `prvr import` makes one")
    return collection


def declare_spec(store: Store, spec: dict[str, Any]) -> dict[str, Any]:
    """Put spec.json of a folder, or check that the one that stands says the same.

    Args:
        store: the folder of a feature set or an index.
        spec: JSON values; `format_version` is added.

    Returns:
        The spec that stands.

    Raises:
        ValueError: another spec stands; the message names each difference.
    """
    wanted = {"format_version": FORMAT_VERSION, **spec}
    standing = put_json_if_absent(store, "spec.json", wanted)
    differences = list(_differences(standing, wanted))
    if differences:
        raise ValueError(f"{store.uri} was written with other settings: {'; '.join(differences)}")
    return standing


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


def newest_videos(folder: ShardFolder) -> pa.Table:
    """The row that counts of every video, tombstones included; VIDEOS, `shard` and `row`."""
    return first_of(folder.scan(), ["video_id"], [("added_at", "descending"), ("shard", "descending")])


def newest_queries(folder: ShardFolder) -> pa.Table:
    """The row that counts of every query; QUERIES, `shard` and `row`."""
    return first_of(folder.scan(), ["query_id"], [("shard", "descending"), ("row", "descending")])


def newest_windows(folder: ShardFolder, removed: pa.Array) -> pa.Table:
    """The row that counts of every window of an index: video_id, added_at, window, `shard` and `row`."""
    return windows_that_count(folder.scan(["video_id", "added_at", "window"]), removed)


def windows_that_count(rows: pa.Table, removed: pa.Array) -> pa.Table:
    """Those of an index's located rows that count, where `rows` has all rows of each of its videos."""
    rows = _of_newest_files(rows, removed)
    return first_of(rows, ["video_id", "window"], [("shard", "ascending"), ("row", "ascending")])


def of_current_files(rows: pa.Table, videos: pa.Table) -> pa.Table:
    """Those of a feature set's rows that were read from the files which `videos` names, not from earlier versions."""
    return rows.filter(pc.fill_null(pc.equal(rows["added_at"], _looked_up(rows, videos, "added_at")), False))


def newer_than(before: float | None, now: float) -> float:
    """`added_at` of a row that shall count before an earlier one: now, unless a clock was ahead then."""
    return now if before is None else max(now, math.nextafter(before, math.inf))


def first_of(rows: pa.Table, keys: list[str], order: list[tuple[str, str]]) -> pa.Table:
    """Keep the first row of every key, after sorting by the keys and then by `order`."""
    ordered = rows.sort_by([*((key, "ascending") for key in keys), *order])
    if not len(ordered):
        return ordered
    is_new = np.zeros(len(ordered), dtype=bool)
    for key in keys:
        codes = ordered[key].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        is_new[1:] |= codes[1:] != codes[:-1]
    is_new[0] = True
    return ordered.filter(pa.array(is_new))


def by_shard(rows: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """Split located rows by their shard: (name, row numbers ascending), in shard order."""
    ordered = rows.select(["shard", "row"]).sort_by([("shard", "ascending"), ("row", "ascending")])
    start = 0
    for item in ordered["shard"].combine_chunks().value_counts().to_pylist():
        yield item["values"], ordered["row"].slice(start, item["counts"]).to_numpy()
        start += item["counts"]


def _of_newest_files(rows: pa.Table, removed: pa.Array) -> pa.Table:
    """Of each video that is not removed, the rows that were read from its newest file."""
    rows = rows.filter(pc.invert(pc.is_in(rows["video_id"], removed)))
    newest = rows.group_by("video_id").aggregate([("added_at", "max")])
    return rows.filter(pc.equal(rows["added_at"], _looked_up(rows, newest, "added_at_max")))


def _looked_up(rows: pa.Table, per_video: pa.Table, column: str) -> pa.ChunkedArray:
    """The value of `column` for each row's video; null where per_video has none."""
    return per_video[column].take(pc.index_in(rows["video_id"], per_video["video_id"].combine_chunks()))


def _located(table: pa.Table, name: str) -> pa.Table:
    # Large: a column of plain strings ends at 2 GiB, which is 42 million names.
    table = table.append_column("shard", pa.repeat(pa.scalar(name, pa.large_string()), len(table)))
    return table.append_column("row", pa.array(np.arange(len(table), dtype=np.int64)))


def _stored(spec: dict[str, Any], columns: tuple[str, ...]) -> list[str]:
    """The stored vector columns behind the wanted ones: a shared encoder's vectors stand in `teacher` alone."""
    return sorted({"teacher" if spec["shared"] else column for column in columns})


def _rows(table: pa.Table) -> Iterator[dict[str, pa.Scalar]]:
    for index in range(len(table)):
        yield {name: table[name][index] for name in table.schema.names}


def _join(segments: list[dict[str, Any]], spec: dict[str, Any], columns: tuple[str, ...]) -> VideoFeatures:
    segments.sort(key=lambda row: row["segment"].as_py())

    def vectors(column: str) -> np.ndarray:
        dim = spec[column]["dim"]
        stored = "teacher" if spec["shared"] else column
        if column not in columns:
            return np.empty((0, dim), np.float16)
        parts = [unpack_vectors(row[stored], dim) for row in segments]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    first = segments[0]
    teacher_FD = vectors("teacher")
    return VideoFeatures(
        video_id=first["video_id"].as_py(),
        etag=first["etag"].as_py(),
        added_at=first["added_at"].as_py(),
        duration_s=first["duration_s"].as_py(),
        timestamps_s=np.concatenate([unpack_times(row["timestamps_s"]) for row in segments]),
        teacher=teacher_FD,
        student=teacher_FD if spec["shared"] and set(columns) == {"teacher", "student"} else vectors("student"),
    )


def _differences(standing: Any, wanted: Any, path: str = "") -> Iterator[str]:
    if isinstance(standing, dict) and isinstance(wanted, dict):
        for key in sorted({*standing, *wanted}):
            yield from _differences(standing.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif standing != wanted:
        yield f"{path} is {standing!r} there, {wanted!r} here"

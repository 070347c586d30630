"""ROOT/features/<set>: one row per segment of a video, one per query, and how segments are joined into videos.

If a segment has several rows, readers take the one of the newest source, then success before failure, then the first
shard name. Vectors are read, never computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.collection.shards import ShardFolder, by_shard, first_of, looked_up, of_newest_files
from prvr_ray.collection.spec import read_spec
from prvr_ray.schema import text_hash, unpack_times, unpack_vectors
from prvr_ray.storage import Store, get_json, put_json, read_table

if TYPE_CHECKING:
    from prvr_ray.collection.collection import Collection

_VERSIONS = "query-versions.json"  # of an imported set: the versions of the files that its captions' vectors come from
_NUM_NAMED = 3
_CLOCK_STARTS_ANYWHERE = (".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob")
_SMALL = [name for name in schema.FEATURE_VIDEOS.names if name not in ("timestamps_s", "teacher", "student")]


@dataclass(frozen=True)
class VideoFeatures:
    """One video, its segments joined. `student` is `teacher` itself where one encoder serves both.

    teacher: (num_teacher_frames, teacher dim) float16, unnormalised. student: (F, student dim) float16.
    timestamps_s: (F,) float64, of the student's frames, on the clock that a player shows. duration_s: the end on it.
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
class EncodedQueries:
    """Which of some captions have vectors of the text that they have now; see `FeatureSet.match_queries`.

    rows: as of `FeatureSet.queries`, one for each usable caption. missing: ids without vectors. stale: ids whose
    vectors are of an earlier text; they count as not encoded.
    """

    rows: pa.Table
    missing: list[str]
    stale: list[str]

    def check(self, of: str) -> None:
        """Raise ValueError if most of the captions have changed since they were encoded; `of` says which captions."""
        num_encoded = len(self.rows) + len(self.stale)
        if 2 * len(self.stale) > num_encoded:
            raise ValueError(
                f"{len(self.stale)} of the {num_encoded} encoded captions of {of} have changed since"
                f" ({', '.join(map(repr, self.stale[:_NUM_NAMED]))}): run `prvr ingest` to encode them again"
            )


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

    @property
    def has_causal_text(self) -> bool:
        """Whether a token's state knows only the words up to it; False for imported features and older sets."""
        return bool(self.spec()["student"].get("causal_text", False))

    def segments(self) -> pa.Table:
        """The current row of every segment, failures included, without vectors: FEATURE_VIDEOS' small columns,
        `shard` and `row`. Of a changed video only the newest source that was read; no removed video."""
        rows = of_newest_files(self.video_shards.scan(_SMALL), self.collection.removed())
        rows = rows.append_column("failed", pc.is_valid(rows["error_class"]))
        order = [("failed", "ascending"), ("shard", "ascending"), ("row", "ascending")]
        return first_of(rows, ["video_id", "segment"], order)

    def complete(self, segments: pa.Table | None = None) -> pa.Table:
        """The rows of `segments` that belong to whole videos: no failure, and every segment up to is_last."""
        rows = self.segments() if segments is None else segments
        good = rows.filter(pc.invert(rows["failed"]))
        last = good.filter(good["is_last"]).group_by("video_id").aggregate([("segment", "min")])
        good = good.filter(pc.less_equal(good["segment"], looked_up(good, last, "segment_min")))
        counts = good.group_by("video_id").aggregate([("segment", "count"), ("segment", "max")])
        is_whole = pc.equal(pc.add(looked_up(good, counts, "segment_max"), 1), looked_up(good, counts, "segment_count"))
        kept = good.filter(is_whole)
        return kept.sort_by([("shard", "ascending"), ("row", "ascending")])

    def read_videos(self, rows: pa.Table, columns: tuple[str, ...] = ("teacher", "student")) -> Iterator[VideoFeatures]:
        """Stream whole videos, shard by shard; a video comes when the last of its segments has been read.

        Videos that are decoded at the same time have their segments in the same few shards, but shard names do not tell
        the time. Ingest takes videos by id, so shards in that order leave few videos waiting for a segment.

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
            "start_s",
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
                    yield _join_segments(waiting.pop(video_id), spec, columns)

    def queries(self) -> pa.Table:
        """The current row of every encoded query: query_id, text_hash, num_tokens, `shard`, `row`."""
        rows = self.query_shards.scan(["query_id", "text_hash", "num_tokens"])
        return first_of(rows, ["query_id"], [("shard", "descending"), ("row", "descending")])

    def match_queries(self, queries: pa.Table) -> EncodedQueries:
        """Join captions with their vectors, by id and by text: every reader of vectors comes through here.

        Args:
            queries: columns query_id and text, each id once.
        """
        ids = queries["query_id"].combine_chunks()
        rows = self.query_shards.scan(["query_id", "text_hash", "num_tokens"])
        rows = rows.filter(pc.is_in(rows["query_id"], ids))
        current = rows.filter(self._are_of(rows, ids, queries["text"].to_pylist()))
        current = first_of(current, ["query_id"], [("shard", "descending"), ("row", "descending")])
        rest = ids.filter(pc.invert(pc.is_in(ids, current["query_id"].combine_chunks())))
        is_stale = pc.is_in(rest, rows["query_id"].combine_chunks())
        return EncodedQueries(
            current, rest.filter(pc.invert(is_stale)).sort().to_pylist(), rest.filter(is_stale).sort().to_pylist()
        )

    def _are_of(self, rows: pa.Table, ids: pa.Array, texts: list[str]) -> pa.Array:
        """Whether each row's vectors are of the text that its caption has."""
        versions = self._query_versions()
        found = pa.array(np.full(len(rows), versions is None))
        places = pc.index_in(rows["query_id"], ids)
        for version in versions or ():
            hashes = pa.array([text_hash(text or "", version) for text in texts], pa.string())
            found = pc.or_(found, pc.equal(rows["text_hash"], hashes.take(places)))
        return found

    def _query_versions(self) -> list[str] | None:
        """What is mixed into the hashes of texts; None if unknown: then a hash cannot tell whether a text changed."""
        if not (self._get("spec.json") or {}).get("imported"):
            return [""]
        record = self._get(_VERSIONS)
        return record["versions"] if record else None

    def _get(self, key: str) -> dict[str, Any] | None:
        try:
            return get_json(self.store, key)
        except FileNotFoundError:
            return None

    def add_query_version(self, version: str) -> None:
        """Record a version of the files that captions' vectors are imported from, before the vectors are put.

        Earlier versions of this program did not record these versions. For a set that they imported, none is recorded
        now either, because its hashes cannot be checked.
        """
        versions = self._query_versions() if self.query_shards.live() else []
        if versions is not None and version not in versions:
            put_json(self.store, _VERSIONS, {"versions": [*versions, version]})

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
        """The live shards, for a plan.json."""
        return {"videos": self.video_shards.live(), "queries": self.query_shards.live()}

    def pinned(self, plan: dict[str, list[str]]) -> FeatureSet:
        """This set, reading exactly a plan's shards."""
        return replace(
            self,
            video_shards=replace(self.video_shards, names=tuple(plan["videos"])),
            query_shards=replace(self.query_shards, names=tuple(plan["queries"])),
        )


def partial_videos(rows: pa.Table) -> dict[str, float]:
    """The videos of which a part could not be decoded, the worst first.

    Args:
        rows: of `complete()`.

    Returns:
        video_id -> mean decoded_share of its segments.
    """
    shares = rows.group_by("video_id").aggregate([("decoded_share", "min"), ("decoded_share", "mean")])
    shares = shares.filter(pc.less(shares["decoded_share_min"], schema.PARTIAL_BELOW))
    shares = shares.sort_by([("decoded_share_mean", "ascending"), ("video_id", "ascending")])
    return dict(zip(shares["video_id"].to_pylist(), shares["decoded_share_mean"].to_pylist(), strict=True))


def count_partial(rows: pa.Table) -> dict[str, Any]:
    """For a summary: how many videos of `rows`, of `complete()`, are partial, and some of them; nothing without any."""
    partial = partial_videos(rows)
    if not partial:
        return {}
    examples = [f"{video_id} ({share:.0%})" for video_id, share in list(partial.items())[:_NUM_NAMED]]
    return {"partial": len(partial), "partial_examples": examples}


def of_current_files(rows: pa.Table, videos: pa.Table) -> pa.Table:
    """Those of a feature set's rows that were read from the files which `videos` names, not from earlier versions."""
    return rows.filter(pc.fill_null(pc.equal(rows["added_at"], looked_up(rows, videos, "added_at")), False))


def _stored(spec: dict[str, Any], columns: tuple[str, ...]) -> list[str]:
    """The stored vector columns behind the wanted ones: a shared encoder's vectors are in `teacher` only."""
    return sorted({"teacher" if spec["shared"] else column for column in columns})


def _rows(table: pa.Table) -> Iterator[dict[str, pa.Scalar]]:
    for index in range(len(table)):
        yield {name: table[name][index] for name in table.schema.names}


def _join_segments(segments: list[dict[str, Any]], spec: dict[str, Any], columns: tuple[str, ...]) -> VideoFeatures:
    segments.sort(key=lambda row: row["segment"].as_py())

    def vectors(column: str) -> np.ndarray:
        dim = spec[column]["dim"]
        stored = "teacher" if spec["shared"] else column
        if column not in columns:
            return np.empty((0, dim), np.float16)
        parts = [unpack_vectors(row[stored], dim) for row in segments]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    first = segments[0]
    duration_s: Any = first["duration_s"].as_py()
    if duration_s is not None:
        duration_s += _delay_s(first)
    teacher_FD = vectors("teacher")
    return VideoFeatures(
        video_id=first["video_id"].as_py(),
        etag=first["etag"].as_py(),
        added_at=first["added_at"].as_py(),
        duration_s=duration_s,
        timestamps_s=np.concatenate([unpack_times(row["timestamps_s"]) + _delay_s(row) for row in segments]),
        teacher=teacher_FD,
        student=teacher_FD if spec["shared"] and set(columns) == {"teacher", "student"} else vectors("student"),
    )


def _delay_s(row: dict[str, Any]) -> float:
    """Seconds to add to a row's times so that they are on the clock that a player shows.

    Rows hold such times, with a start_s of 0. Rows of the first version count from the stream's first frame, which is
    at start_s on the container's clock. That is the player's clock too, except in MPEG streams, which start anywhere.
    """
    if row["video_id"].as_py().lower().endswith(_CLOCK_STARTS_ANYWHERE):
        return 0.0
    return max(row["start_s"].as_py() or 0.0, 0.0)

"""Finds pending work: the source's videos and the collection's captions that have no current features."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.annotations.splits import split_of
from prvr_ray.collection import Collection, FeatureSet, newer_than, of_current_files
from prvr_ray.features.sources import Source
from prvr_ray.video.errors import PERMANENT, TRANSIENT

WORK = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("added_at", pa.float64()),
        ("missing", pa.string()),  # why there is no such file
        ("skip", pa.list_(pa.int32())),  # segments that already exist
    ]
)


@dataclass(frozen=True)
class State:
    """The existing features of one video's current file."""

    segments: tuple[int, ...]  # those that succeeded
    is_complete: bool
    error_class: str | None


def classes_to_retry(retry: str) -> tuple[str, ...]:
    """Return the error classes selected by `ingest.retry`.

    Raises:
        ValueError: the value is neither `transient` nor `all` nor an error class.
    """
    named = {"transient": TRANSIENT, "all": (*TRANSIENT, *PERMANENT)}
    if retry not in named and retry not in named["all"]:
        raise ValueError(f"ingest.retry={retry!r}; use transient, all, or one of {', '.join(named['all'])}")
    return named.get(retry, (retry,))


def compare_videos(
    collection: Collection, sources: Sequence[Source], split_shares: dict[str, float], now: float
) -> tuple[pa.Table, pa.Table]:
    """Compare the sources with the collection's videos; removed videos stay removed.

    A video without a split gets the split of its captions, or else one chosen by the hash of its id. A missing file may
    only be temporarily unreachable, so its row is kept, and its features remain valid.

    Returns:
        The current rows of the videos (VIDEOS, plus `missing`); and those of them that are new, or whose file, URI or
        split has changed. A file has changed if its size or etag differs.
    """
    known = {row["video_id"]: row for row in collection.videos().to_pylist()}
    removed = set(collection.removed().to_pylist())
    queries = collection.queries().select(["video_ids", "split"]).to_pylist()
    splits = {video_id: query["split"] for query in queries for video_id in query["video_ids"] or []}
    current, changed = [], []
    for source in sources:
        if source.video_id in removed:
            continue
        before = known.get(source.video_id)
        row = _video_row(source, before, splits.get(source.video_id) or split_of(source.video_id, split_shares), now)
        current.append(row | {"missing": source.missing})
        if row != before:
            changed.append(row)
    with_missing = schema.VIDEOS.append(pa.field("missing", pa.string()))
    return pa.Table.from_pylist(current, with_missing), pa.Table.from_pylist(changed, schema.VIDEOS)


def use_recorded_times(collection: Collection, current: pa.Table) -> pa.Table:
    """Replace `added_at` in `current` by the collection's value: another ingest may have added the files meanwhile.

    If two ingests add the same file, the later row is live, and features must carry its `added_at`.
    """
    known = collection.videos()
    places = pc.index_in(current["video_id"], known["video_id"].combine_chunks())
    is_same = pc.and_(*(pc.equal(known[name].take(places), current[name]) for name in ("size", "etag")))
    added_at = pc.if_else(is_same, known["added_at"].take(places), None)
    column = current.schema.get_field_index("added_at")
    return current.set_column(column, current.schema.field(column), pc.coalesce(added_at, current["added_at"]))


def read_states(features: FeatureSet, videos: pa.Table) -> dict[str, State]:
    """Summarise the existing features of each video's current file; videos without any are left out."""
    rows = of_current_files(features.segments(), videos)
    complete = set(features.complete(rows)["video_id"].to_pylist())
    segments: dict[str, list[int]] = {}
    errors: dict[str, str] = {}
    for video_id, segment, error_class in zip(
        *(rows[name].to_pylist() for name in ("video_id", "segment", "error_class")), strict=True
    ):
        good = segments.setdefault(video_id, [])
        if error_class is None:
            good.append(segment)
        else:
            errors[video_id] = error_class
    return {
        video_id: State(tuple(good), video_id in complete, None if video_id in complete else errors.get(video_id))
        for video_id, good in segments.items()
    }


def find_pending_videos(videos: pa.Table, existing: dict[str, State], retry: Iterable[str], limit: int = 0) -> pa.Table:
    """Return the videos to process (WORK): neither complete nor failed permanently.

    Args:
        existing: of `read_states`.
        retry: error classes to process again.
        limit: return only the first ones; 0: all.
    """
    given_up = {*TRANSIENT, *PERMANENT} - set(retry)  # not classes of other versions: those are retried
    work: list[dict[str, Any]] = []
    for row in videos.to_pylist():
        state = existing.get(row["video_id"], State((), False, None))
        if state.is_complete or state.error_class in given_up:
            continue
        size = 0 if row["missing"] else row["size"]  # a missing file is not downloaded
        work.append({name: row.get(name) for name in WORK.names} | {"size": size, "skip": state.segments})
    return pa.Table.from_pylist(work[: limit or None], WORK)


def find_pending_queries(collection: Collection, features: FeatureSet) -> pa.Table:
    """Return query_id and text of captions that have not been encoded since their text last changed."""
    queries = collection.queries().select(["query_id", "text"])
    encoded = features.match_queries(queries).rows
    return queries.filter(pc.invert(pc.is_in(queries["query_id"], encoded["query_id"].combine_chunks())))


def _video_row(source: Source, before: dict[str, Any] | None, split: str, now: float) -> dict[str, Any]:
    """Make the current row of a video. split: used if neither the source nor the existing row names one."""
    if source.missing and before:
        return before | {"split": source.split or before["split"] or split}
    before = before or {}
    is_same_file = (before.get("size"), before.get("etag")) == (source.size, source.etag)
    return {
        "video_id": source.video_id,
        "uri": source.uri,
        "size": source.size,
        "etag": source.etag,
        "split": source.split or before.get("split") or split,
        "duration_s": before.get("duration_s") if is_same_file else None,
        "added_at": before["added_at"] if is_same_file else newer_than(before.get("added_at"), now),
        "removed": False,
    }

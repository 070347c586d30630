"""What is left to do: the source's videos and the collection's captions, minus what stands. No Ray here."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.collection import Collection, FeatureSet, newer_than, of_current_files
from prvr_ray.corpus.errors import PERMANENT, TRANSIENT
from prvr_ray.corpus.splits import split_of
from prvr_ray.stages.sources import Source

WORK = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("added_at", pa.float64()),
        ("missing", pa.string()),  # why there is no such file
        ("skip", pa.list_(pa.int32())),  # segments that stand already
    ]
)


@dataclass(frozen=True)
class State:
    """What stands of one video's current source."""

    segments: tuple[int, ...]  # that succeeded
    is_complete: bool
    error_class: str | None


def classes_to_retry(retry: str) -> tuple[str, ...]:
    """The error classes that `ingest.retry` names.

    Raises:
        ValueError: it is neither transient, nor all, nor an error class.
    """
    named = {"transient": TRANSIENT, "all": (*TRANSIENT, *PERMANENT)}
    if retry not in named and retry not in named["all"]:
        raise ValueError(f"ingest.retry={retry!r}; use transient, all, or one of {', '.join(named['all'])}")
    return named.get(retry, (retry,))


def current_videos(
    collection: Collection, sources: Sequence[Source], split_shares: dict[str, float], now: float
) -> tuple[pa.Table, pa.Table]:
    """Compare the sources with the collection's videos; removed videos stay removed.

    A video that is in no split gets that of its captions, else one by the hash of its id. A file that is missing may
    only be out of reach, so its row stays as it is, and with it counts what was read from the file.

    Returns:
        The videos' rows as they are from now on (VIDEOS, with `missing` added); and those of them that are new, or of
        which the file, the place or the split has changed. A file is another one when its size or etag differs.
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


def standing_videos(collection: Collection, current: pa.Table) -> pa.Table:
    """`current` with `added_at` as the collection has it: another run may have listed the same files meanwhile.

    Of two runs that find a file new, the row of the later one counts, and rows of features belong to it alone.
    """
    known = collection.videos()
    places = pc.index_in(current["video_id"], known["video_id"].combine_chunks())
    is_same = pc.and_(*(pc.equal(known[name].take(places), current[name]) for name in ("size", "etag")))
    added_at = pc.if_else(is_same, known["added_at"].take(places), None)
    column = current.schema.get_field_index("added_at")
    return current.set_column(column, current.schema.field(column), pc.coalesce(added_at, current["added_at"]))


def states(features: FeatureSet, videos: pa.Table) -> dict[str, State]:
    """What stands of each video's current source; videos of which nothing stands are left out."""
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


def wanted_videos(videos: pa.Table, standing: dict[str, State], retry: Iterable[str], limit: int = 0) -> pa.Table:
    """The videos to work on (WORK): neither complete nor failed for good; the first `limit` of them, 0 for all."""
    retry = set(retry)
    work: list[dict[str, Any]] = []
    for row in videos.to_pylist():
        state = standing.get(row["video_id"], State((), False, None))
        if state.is_complete or (state.error_class is not None and state.error_class not in retry):
            continue
        size = 0 if row["missing"] else row["size"]  # what is missing is not downloaded
        work.append({name: row.get(name) for name in WORK.names} | {"size": size, "skip": state.segments})
    return pa.Table.from_pylist(work[: limit or None], WORK)


def wanted_queries(collection: Collection, features: FeatureSet) -> pa.Table:
    """query_id and text of the captions that are not encoded, or whose text has changed since."""
    queries = collection.queries().select(["query_id", "text"])
    encoded = features.queries()
    known = encoded["text_hash"].take(pc.index_in(queries["query_id"], encoded["query_id"].combine_chunks()))
    hashes = pa.array([text_hash(text) for text in queries["text"].to_pylist()], pa.string())
    return queries.filter(pc.invert(pc.fill_null(pc.equal(hashes, known), False)))


def text_hash(text: str) -> str:
    """The version of a caption."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _video_row(source: Source, before: dict[str, Any] | None, split: str, now: float) -> dict[str, Any]:
    """`split` is for a video that neither its source nor its row puts in one."""
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

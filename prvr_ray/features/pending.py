"""Finds pending work: the source's videos and the collection's captions that have no current features."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.annotations.splits import split_of
from prvr_ray.collection import Collection, FeatureSet, of_current_files
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


# The existing features of a video's current file. error_class is null where it is complete or has no failure.
STATES = pa.schema(
    [
        ("video_id", pa.string()),
        ("segments", pa.list_(pa.int32())),  # those that succeeded
        ("is_complete", pa.bool_()),
        ("error_class", pa.string()),
    ]
)


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
    collection: Collection, sources: pa.Table, split_shares: dict[str, float], now: float
) -> tuple[pa.Table, pa.Table]:
    """Compare the sources with the collection's videos; removed videos stay removed.

    A video without a split gets the split of its captions, or else one chosen by the hash of its id. A missing file may
    only be temporarily unreachable, so its row is kept, and its features remain valid.

    Args:
        sources: SOURCES.

    Returns:
        The current rows of the videos (VIDEOS, plus `missing`); and those of them that are new, or whose file, URI or
        split has changed. A file has changed if its size or etag differs.
    """
    sources = sources.filter(pc.invert(pc.is_in(sources["video_id"], collection.removed())))
    known = collection.videos()
    place = pc.index_in(sources["video_id"], known["video_id"].combine_chunks())
    before = known.take(place)  # nulls where the collection has no such video
    is_known, is_gone = pc.is_valid(place), pc.is_valid(sources["missing"])
    is_same = pc.and_(is_known, pc.fill_null(_all_equal(before, sources, ("size", "etag")), False))
    is_kept = pc.and_(is_known, is_gone)
    columns = {name: pc.if_else(is_kept, before[name], sources[name]) for name in ("video_id", "uri", "size", "etag")}
    columns["split"] = _splits(collection, sources, before["split"], split_shares)
    columns["duration_s"] = pc.if_else(pc.or_(is_same, is_kept), before["duration_s"], None)
    columns["added_at"] = pc.if_else(
        pc.or_(is_same, is_kept), before["added_at"], _newer_times(before["added_at"], now)
    )
    columns["removed"] = pa.repeat(False, len(sources))
    columns["metadata"] = pc.coalesce(sources["metadata"], before["metadata"])
    rows = pa.table(columns, schema=schema.VIDEOS)
    is_changed = pc.invert(pc.and_(is_known, _all_equal(before, rows, schema.VIDEOS.names)))
    return rows.append_column("missing", sources["missing"]), rows.filter(is_changed)


def _all_equal(left: pa.Table, right: pa.Table, names: Iterable[str]) -> pa.ChunkedArray:
    """Whether two rows agree in all of these columns; two nulls agree."""
    agree = None
    for name in names:
        is_null = pc.and_(pc.is_null(left[name]), pc.is_null(right[name]))
        same = pc.or_(pc.fill_null(pc.equal(left[name], right[name]), False), is_null)
        agree = same if agree is None else pc.and_(agree, same)
    return agree


def _splits(
    collection: Collection, sources: pa.Table, before: pa.ChunkedArray, shares: dict[str, float]
) -> pa.ChunkedArray:
    """The split that the source names; else that of the existing row, of the video's captions, or of its id's hash."""
    queries = collection.queries().select(["video_ids", "split"]).combine_chunks()
    named = pa.table(
        {
            "video_id": pc.list_flatten(queries["video_ids"]),
            "split": queries["split"].take(pc.list_parent_indices(queries["video_ids"])),
        }
    )
    of_captions = named.group_by("video_id", use_threads=False).aggregate([("split", "last")])
    place = pc.index_in(sources["video_id"], of_captions["video_id"].combine_chunks())
    found = pc.coalesce(sources["split"], before, of_captions["split_last"].take(place))
    without = sources["video_id"].filter(pc.is_null(found))
    dealt = pa.array((split_of(video_id.as_py(), shares) for video_id in without), pa.string())
    return pc.replace_with_mask(found.combine_chunks(), pc.is_null(found).combine_chunks(), dealt)


def _newer_times(before: pa.ChunkedArray, now: float) -> pa.Array:
    """`newer_than` for a column: a time for rows that supersede earlier ones."""
    times = before.to_numpy()  # NaN where there is no earlier row
    return pa.array(np.where(np.isnan(times), now, np.fmax(now, np.nextafter(times, np.inf))))


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


def read_states(features: FeatureSet, videos: pa.Table) -> pa.Table:
    """Summarise the existing features of each video's current file (STATES); videos without any are left out."""
    rows = of_current_files(features.segments(), videos)
    is_good = pc.is_null(rows["error_class"])
    complete = features.complete(rows)["video_id"].combine_chunks()
    ids = rows["video_id"].combine_chunks().unique()
    good = rows.filter(is_good).group_by("video_id", use_threads=False).aggregate([("segment", "list")])
    bad = rows.filter(pc.invert(is_good)).group_by("video_id", use_threads=False).aggregate([("error_class", "last")])
    is_complete = pc.is_in(ids, complete)
    error = bad["error_class_last"].take(pc.index_in(ids, bad["video_id"].combine_chunks()))
    segments = _or_empty(good["segment_list"], pc.index_in(ids, good["video_id"].combine_chunks()))
    return pa.table([ids, segments, is_complete, pc.if_else(is_complete, None, error)], schema=STATES)


def find_pending_videos(videos: pa.Table, existing: pa.Table, retry: Iterable[str], limit: int = 0) -> pa.Table:
    """Return the videos to process (WORK): neither complete nor failed permanently.

    Args:
        existing: STATES, of `read_states`.
        retry: error classes to process again.
        limit: return only the first ones; 0: all.
    """
    given_up = {*TRANSIENT, *PERMANENT} - set(retry)  # not classes of other versions: those are retried
    place = pc.index_in(videos["video_id"], existing["video_id"].combine_chunks())
    is_complete = pc.fill_null(existing["is_complete"].take(place), False)
    is_given_up = pc.is_in(existing["error_class"].take(place), pa.array(given_up, pa.string()))
    is_pending = pc.invert(pc.or_(is_complete, is_given_up))
    place, videos = place.filter(is_pending).slice(0, limit or None), videos.filter(is_pending).slice(0, limit or None)
    columns = {name: videos[name] for name in WORK.names if name in videos.schema.names}
    columns["size"] = pc.if_else(pc.is_valid(videos["missing"]), 0, videos["size"])  # a missing file is not downloaded
    columns["skip"] = _or_empty(existing["segments"], place)
    return pa.table(columns).select(WORK.names).cast(WORK)


def _or_empty(lists: pa.ChunkedArray, place: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """The list at each place; an empty one where there is none."""
    with_empty = pa.chunked_array([*lists.chunks, pa.array([[]], lists.type)])
    return with_empty.take(pc.fill_null(place, len(lists)))


def find_pending_queries(collection: Collection, features: FeatureSet) -> pa.Table:
    """Return query_id and text of captions that have not been encoded since their text last changed."""
    queries = collection.queries().select(["query_id", "text"])
    encoded = features.match_queries(queries).rows
    return queries.filter(pc.invert(pc.is_in(queries["query_id"], encoded["query_id"].combine_chunks())))

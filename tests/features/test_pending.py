"""What is left to do: wanted minus there, for new, changed, failed, half-finished and removed videos."""

import pyarrow as pa
import pytest
from support.sources import Source, as_table

from prvr_ray import schema
from prvr_ray.annotations.splits import split_of
from prvr_ray.collection import open_collection
from prvr_ray.features.pending import (
    STATES,
    classes_to_retry,
    compare_videos,
    find_pending_queries,
    find_pending_videos,
    read_states,
    use_recorded_times,
)
from prvr_ray.schema import text_hash

SHARES = {"train": 0.5, "test": 0.5}


@pytest.fixture
def collection(tmp_path):
    return open_collection(str(tmp_path / "root"))


def put_videos(collection, sources, now):
    current, changed = compare_videos(collection, as_table(sources), SHARES, now)
    collection.video_shards.append(changed)
    return current


def put_segments(collection, *rows):
    table = pa.Table.from_pylist([{"is_last": False, "num_frames": 1, **row} for row in rows], schema.FEATURE_VIDEOS)
    collection.features().video_shards.append(table)


def work(collection, current, retry="transient", limit=0):
    table = find_pending_videos(current, read_states(collection.features(), current), classes_to_retry(retry), limit)
    return {row["video_id"]: row["skip"] for row in table.to_pylist()}


def test_what_is_complete_is_left_alone_and_what_is_half_finished_goes_on(collection):
    sources = [Source(name, f"/v/{name}", 1, "e") for name in ("done", "half", "gap", "new")]
    current = put_videos(collection, sources, now=100.0)
    put_segments(
        collection,
        {"video_id": "done", "added_at": 100.0, "segment": 0},
        {"video_id": "done", "added_at": 100.0, "segment": 1, "is_last": True},
        {"video_id": "half", "added_at": 100.0, "segment": 0},
        {"video_id": "gap", "added_at": 100.0, "segment": 1, "is_last": True},
    )
    assert work(collection, current) == {"half": [0], "gap": [1], "new": []}
    assert work(collection, current, limit=2) == {"half": [0], "gap": [1]}


def test_failures_are_tried_again_as_asked(collection):
    names = ("decode", "download", "timeout", "recovered")
    current = put_videos(collection, [Source(name, f"/v/{name}", 1, "e") for name in names], now=1.0)
    for name in names:
        row = {"video_id": name, "added_at": 1.0, "segment": 0, "is_last": True}
        put_segments(collection, row | {"error_class": "decode" if name == "recovered" else name})
        if name == "recovered":
            put_segments(collection, row)
    assert set(work(collection, current)) == {"download"}
    assert set(work(collection, current, "all")) == {"decode", "download", "timeout"}
    assert set(work(collection, current, "timeout")) == {"timeout"}
    with pytest.raises(ValueError, match=r"transient, all, or one of .*decode"):
        classes_to_retry("sometimes")


def test_a_failure_of_a_class_that_other_versions_wrote_is_retried(collection):
    current = put_videos(collection, [Source("a", "/v/a", 1, "e")], now=1.0)
    failure = {"video_id": "a", "added_at": 1.0, "segment": 0, "is_last": True, "error_class": "worker_lost"}
    put_segments(collection, failure)
    assert read_states(collection.features(), current)["error_class"].to_pylist() == ["worker_lost"]
    assert set(work(collection, current)) == set(work(collection, current, "all")) == {"a"}


def test_a_changed_file_is_pending_again_and_a_moved_one_is_not(collection):
    put_videos(collection, [Source("a", "/old/a", 1, "e"), Source("b", "/old/b", 1, "e")], now=1.0)
    put_segments(
        collection,
        {"video_id": "a", "added_at": 1.0, "segment": 0, "is_last": True},
        {"video_id": "b", "added_at": 1.0, "segment": 0, "is_last": True},
    )
    current = put_videos(collection, [Source("a", "/new/a", 1, "e"), Source("b", "/old/b", 1, "other")], now=2.0)
    assert work(collection, current) == {"b": []}
    rows = {row["video_id"]: row for row in collection.videos().to_pylist()}
    assert (rows["a"]["uri"], rows["a"]["added_at"]) == ("/new/a", 1.0)
    assert (rows["b"]["etag"], rows["b"]["added_at"]) == ("other", 2.0)


def test_a_file_out_of_reach_keeps_its_row_and_its_features(collection):
    there = [Source("done", "/v/done", 1, "e"), Source("half", "/v/half", 1, "e")]
    put_videos(collection, there, now=1.0)
    rows = collection.videos().to_pylist()
    put_segments(
        collection,
        {"video_id": "done", "added_at": 1.0, "segment": 0, "is_last": True},
        {"video_id": "half", "added_at": 1.0, "segment": 0},
    )
    lost = [Source(name, f"/elsewhere/{name}", missing="the token has expired") for name in ("done", "half", "new")]

    current = put_videos(collection, lost, now=2.0)

    work = find_pending_videos(
        current, read_states(collection.features(), current), classes_to_retry("transient")
    ).to_pylist()
    assert [(row["video_id"], row["added_at"], row["size"]) for row in work] == [("half", 1.0, 0), ("new", 2.0, 0)]
    assert all(row["missing"] == "the token has expired" for row in work)
    assert collection.videos().to_pylist()[:2] == rows
    failure = {"video_id": "half", "added_at": 1.0, "segment": 1, "is_last": True, "error_class": "download"}
    put_segments(collection, failure)
    current = put_videos(collection, [*there, Source("new", "/v/new", 1, "e")], now=3.0)
    states = read_states(collection.features(), current)
    assert dict(zip(states["video_id"].to_pylist(), states["segments"].to_pylist(), strict=True)) == {
        "done": [0],
        "half": [0],
    }
    assert collection.features().complete()["video_id"].to_pylist() == ["done"]
    assert dict(zip(current["video_id"].to_pylist(), current["added_at"].to_pylist(), strict=True)) == {
        "done": 1.0,
        "half": 1.0,
        "new": 3.0,  # its first row was of no file
    }


def test_a_video_of_which_no_file_ever_stood_may_be_missing(collection):
    released = {"video_id": "a", "etag": "released", "split": "val", "added_at": 0.5, "removed": False}
    collection.video_shards.append(pa.Table.from_pylist([released], schema.VIDEOS))
    current, changed = compare_videos(collection, as_table([Source("a", "/v/a", missing="gone")]), SHARES, now=1.0)
    assert len(changed) == 0
    assert find_pending_videos(current, STATES.empty_table(), ())["size"].to_pylist() == [0]


def test_nothing_new_puts_no_row(collection):
    sources = [Source("a", "/v/a", 1, "e"), Source("b", "/v/b", 2, "e", split="mine")]
    put_videos(collection, sources, now=1.0)
    _, changed = compare_videos(collection, as_table(sources), SHARES, now=2.0)
    assert len(changed) == 0


def test_splits_come_from_the_source_then_the_collection_then_the_id(collection):
    imported = {"video_id": "b", "split": "val", "added_at": 0.5, "removed": False}
    collection.video_shards.append(pa.Table.from_pylist([imported], schema.VIDEOS))
    sources = [Source("a", "/v/a", 1, "e", split="test"), Source("b", "/v/b", 1, "e"), Source("c", "/v/c", 1, "e")]
    current = put_videos(collection, sources, now=1.0)
    splits = dict(zip(current["video_id"].to_pylist(), current["split"].to_pylist(), strict=True))
    assert splits == {"a": "test", "b": "val", "c": split_of("c", SHARES)}


def test_of_two_runs_that_find_a_file_new_both_go_by_the_later_row(collection):
    sources = [Source("a", "/v/a", 1, "e"), Source("b", "/v/b", 1, "e", missing="gone")]
    table = as_table(sources)
    (first, of_first), (second, of_second) = (compare_videos(collection, table, SHARES, now) for now in (1.0, 2.0))
    for changed in (of_second, of_first):
        collection.video_shards.append(changed)
    assert use_recorded_times(collection, first).to_pylist() == second.to_pylist()
    assert use_recorded_times(collection, second).to_pylist() == second.to_pylist()


@pytest.mark.parametrize("other", [{"etag": "other"}, {"size": 2}])
def test_the_times_of_another_file_are_not_taken(collection, other):
    source = Source("a", "/v/a", 1, "e")
    current, _ = compare_videos(collection, as_table([source]), SHARES, now=1.0)
    put_videos(collection, [source._replace(**other)], now=2.0)
    assert use_recorded_times(collection, current)["added_at"].to_pylist() == [1.0]


def test_a_video_that_is_removed_meanwhile_is_no_hindrance(collection):
    current = put_videos(collection, [Source("a", "/v/a", 1, "e")], now=1.0)
    tombstone = {"video_id": "a", "added_at": 2.0, "removed": True}
    collection.video_shards.append(pa.Table.from_pylist([tombstone], schema.VIDEOS))
    assert use_recorded_times(collection, current).to_pylist() == current.to_pylist()


def test_a_removed_video_stays_removed(collection):
    put_videos(collection, [Source("a", "/v/a", 1, "e")], now=1.0)
    tombstone = {"video_id": "a", "added_at": 2.0, "removed": True}
    collection.video_shards.append(pa.Table.from_pylist([tombstone], schema.VIDEOS))
    current, changed = compare_videos(collection, as_table([Source("a", "/v/a", 1, "e")]), SHARES, now=3.0)
    assert (len(current), len(changed)) == (0, 0)


def test_captions_are_wanted_when_new_or_edited(collection):
    def put(text, query_id):
        row = {"query_id": query_id, "text": text, "video_ids": []}
        collection.query_shards.append(pa.Table.from_pylist([row], schema.QUERIES))

    put("same", "q1"), put("before", "q2"), put("new", "q3")
    encoded = [
        {"query_id": q, "text_hash": text_hash(t), "num_tokens": 1} for q, t in [("q1", "same"), ("q2", "before")]
    ]
    collection.features().query_shards.append(pa.Table.from_pylist(encoded, schema.FEATURE_QUERIES))
    put("after", "q2")
    assert find_pending_queries(collection, collection.features()).to_pylist() == [
        {"query_id": "q2", "text": "after"},
        {"query_id": "q3", "text": "new"},
    ]


def test_a_video_in_no_split_gets_that_of_its_captions_and_a_manifest_wins(collection):
    rows = [
        {"query_id": name, "text": "t", "video_ids": [name], "split": "val", "moments": []} for name in ("b", "c", "d")
    ]
    collection.query_shards.append(pa.Table.from_pylist(rows, schema.QUERIES))
    put_videos(collection, [Source("d", "/v/d", 1, "e", split="train")], now=1.0)
    sources = [Source(name, f"/v/{name}", 1, "e") for name in "abd"] + [Source("c", "/v/c", 1, "e", split="test")]
    current = put_videos(collection, sources, now=2.0)
    splits = dict(zip(current["video_id"].to_pylist(), current["split"].to_pylist(), strict=True))
    assert splits == {"a": split_of("a", SHARES), "b": "val", "c": "test", "d": "train"}


def test_a_changed_file_counts_though_the_clock_was_ahead_before(collection):
    put_videos(collection, [Source("a", "/v/a", 1, "e")], now=100.0)
    put_segments(collection, {"video_id": "a", "added_at": 100.0, "segment": 0, "is_last": True})
    current = put_videos(collection, [Source("a", "/v/a", 1, "other")], now=50.0)
    assert work(collection, current) == {"a": []}
    [row] = collection.videos().to_pylist()
    assert row["etag"] == "other"
    put_segments(collection, {"video_id": "a", "added_at": row["added_at"], "segment": 0, "is_last": True})
    assert work(collection, put_videos(collection, [Source("a", "/v/a", 1, "other")], now=60.0)) == {}


def test_metadata_follow_the_manifest_and_outlive_a_listing_without_any(collection):
    def known():
        rows = collection.videos().to_pylist()
        return {row["video_id"]: (row["metadata"], row["added_at"]) for row in rows}

    put_videos(collection, [Source("a", "/v/a", 1, "e", metadata='{"camera": "front"}')], now=1.0)
    put_videos(collection, [Source("a", "/v/a", 1, "e")], now=2.0)
    assert known() == {"a": ('{"camera": "front"}', 1.0)}
    put_videos(collection, [Source("a", "/v/a", 1, "e", metadata='{"camera": "back"}')], now=3.0)
    assert known() == {"a": ('{"camera": "back"}', 1.0)}  # the same file: its features stay valid

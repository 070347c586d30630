"""Which rows readers see: against an oracle that follows the rules of DESIGN row by row, without Arrow."""

import numpy as np
import pyarrow as pa
import pytest
from support import collection_rows as make

from prvr_ray import schema
from prvr_ray.collection import (
    ShardFolder,
    by_shard,
    declare_spec,
    existing_collection,
    first_of,
    newest_windows,
    of_current_files,
    open_collection,
    read_spec,
    shards,
)
from prvr_ray.collection import features as features_module
from prvr_ray.storage import ShardError, put_json


@pytest.fixture
def collection(tmp_path):
    return open_collection(str(tmp_path / "root"))


@pytest.fixture
def features(collection):
    declare_spec(collection.features().store, make.SPEC)
    return collection.features()


def oracle(put, table):
    """All rows of a table with the place where they stand."""
    return [(shard, row, values) for name, shard, rows in put if name == table for row, values in enumerate(rows)]


def oracle_videos(put):
    """Newest source first, then the last shard."""
    current = {}
    for shard, row, values in oracle(put, "videos"):
        rank = (values["added_at"], shard, -row)
        if values["video_id"] not in current or rank > current[values["video_id"]][0]:
            current[values["video_id"]] = (rank, values)
    return {video_id: values for video_id, (_, values) in current.items()}


def oracle_segments(put, table="segments", number="segment"):
    """Of not removed videos: newest source, success before failure, first shard."""
    removed = {video_id for video_id, values in oracle_videos(put).items() if values["removed"]}
    newest = {}
    for _, _, values in oracle(put, table):
        newest[values["video_id"]] = max(values["added_at"], newest.get(values["video_id"], -1.0))
    chosen = {}
    for shard, row, values in oracle(put, table):
        if values["video_id"] in removed or values["added_at"] < newest[values["video_id"]]:
            continue
        rank = ("error_class" in values and values["error_class"] is not None, shard, row)
        key = (values["video_id"], values[number])
        if key not in chosen or rank < chosen[key][0]:
            chosen[key] = (rank, values)
    return {key: (rank[1], rank[2], values) for key, (rank, values) in chosen.items()}


def oracle_complete(put):
    """A video is whole when all its segments up to the first one that says it is the last are there."""
    good = {key: found for key, found in oracle_segments(put).items() if found[2].get("error_class") is None}
    whole = {}
    for video_id in {key[0] for key in good}:
        needed = []
        while (video_id, len(needed)) in good:
            key = (video_id, len(needed))
            needed.append(key)
            if good[key][2]["is_last"]:
                whole |= {key: good[key] for key in needed}
                break
    return whole


def oracle_newest(put, table):
    """The last row of the last shard."""
    chosen = {}
    for place in sorted(oracle(put, table), key=lambda place: place[:2]):
        chosen[place[2]["query_id"]] = place
    return chosen


def places(rows, *keys):
    columns = [rows[name].to_pylist() for name in (*keys, "shard", "row")]
    return {tuple(found[: len(keys)]): tuple(found[len(keys) :]) for found in zip(*columns, strict=True)}


@pytest.mark.parametrize("seed", range(20))
def test_readers_resolve_clashes_as_the_rules_say(collection, seed):
    put = make.put_clashes(collection, seed)
    features = collection.features()
    current = oracle_videos(put)
    standing = {video_id: row for video_id, row in current.items() if not row["removed"]}
    assert {row["video_id"]: row for row in collection.videos().to_pylist()} == standing
    assert set(collection.removed().to_pylist()) == current.keys() - standing.keys()
    queries = {query_id: found[2] for query_id, found in oracle_newest(put, "queries").items()}
    assert {row["query_id"]: row for row in collection.queries().to_pylist()} == queries
    in_val = {row["query_id"] for row in collection.queries("val").to_pylist()}
    assert in_val == {query_id for query_id, row in queries.items() if row["split"] == "val"}
    expected = {key: found[:2] for key, found in oracle_segments(put).items()}
    assert places(features.segments(), "video_id", "segment") == expected
    expected = {key: found[:2] for key, found in oracle_complete(put).items()}
    assert places(features.complete(), "video_id", "segment") == expected
    expected = {(query_id,): found[:2] for query_id, found in oracle_newest(put, "encoded").items()}
    assert places(features.queries(), "query_id") == expected
    expected = {key: found[:2] for key, found in oracle_segments(put, "windows", "window").items()}
    windows = newest_windows(make.index_folder(collection), collection.removed())
    assert places(windows, "video_id", "window") == expected


@pytest.mark.parametrize("seed", range(6))
def test_videos_are_streamed_with_the_vectors_of_the_rows_that_count(collection, seed):
    put = make.put_clashes(collection, seed)
    features = collection.features()
    whole = oracle_complete(put)
    read = {video.video_id: video for video in features.read_videos(features.complete())}
    assert set(read) == {video_id for video_id, _ in whole}
    for video_id, video in read.items():
        numbers = sorted(number for name, number in whole if name == video_id)
        added_at = whole[video_id, 0][2]["added_at"]
        expected = np.repeat([number + 10 * added_at for number in numbers], 2)
        np.testing.assert_array_equal(video.teacher, np.repeat(expected[:, None], 2, 1))
        np.testing.assert_array_equal(video.student, np.repeat(-expected[:, None], 3, 1))
        np.testing.assert_array_equal(video.timestamps_s, np.arange(2.0 * len(numbers)))
        assert video.added_at == added_at
    values = {query.query_id: query.teacher[0] for query in features.read_queries(features.queries())}
    expected = {query_id: found[2]["text_hash"] for query_id, found in oracle_newest(put, "encoded").items()}
    assert {query_id: f"hash-{int(value)}" for query_id, value in values.items()} == expected


def test_a_plan_reads_its_shards_whatever_came_later(collection, features):
    make.put(features.video_shards, make.segment("a"))
    make.put(features.query_shards, make.encoded_query("q", 1))
    pinned = features.pinned(features.plan())
    make.put(features.video_shards, make.segment("a", added_at=2.0), make.segment("b"))
    make.put(features.query_shards, make.encoded_query("q", 2))
    assert pinned.complete()["added_at"].to_pylist() == [1.0]
    assert pinned.queries()["text_hash"].to_pylist() == ["hash-1"]
    assert features.complete()["video_id"].to_pylist() == ["a", "b"]


def test_a_removed_video_disappears_from_a_plan_that_is_older(collection, features):
    make.put(collection.video_shards, make.video("a"), make.video("b"))
    make.put(collection.query_shards, make.query("q"))
    make.put(features.video_shards, make.segment("a"), make.segment("b"))
    old = collection.pinned(collection.plan())
    old_features = old.features().pinned(features.plan())
    make.put(collection.video_shards, make.video("a", 2.0, removed=True))
    assert old.videos()["video_id"].to_pylist() == ["b"]
    assert old_features.complete()["video_id"].to_pylist() == ["b"]


def test_replaced_shards_are_not_read(collection):
    folder = collection.query_shards
    first, second = (make.put(folder, make.query(name)) for name in "ab")
    third = make.put(folder, make.query("c"))
    put_json(folder.store, "replaced-1.json", {"replaced": [first, second], "by": [third]})
    assert folder.live() == [third]


def test_a_record_that_goes_while_it_is_read_makes_readers_list_again(collection, monkeypatch):
    folder = collection.query_shards
    name = make.put(folder, make.query("a"))
    put_json(folder.store, "replaced-1.json", {"replaced": ["long-gone.parquet"], "by": []})
    get_json = shards.get_json

    def get_late(store, key):
        store.delete(key)
        return get_json(store, key)

    monkeypatch.setattr(shards, "get_json", get_late)
    assert folder.live() == [name]


def test_a_changed_file_does_not_count_until_it_is_read(collection, features):
    make.put(collection.video_shards, make.video("a", 2.0), make.video("b", 1.0))
    make.put(features.video_shards, make.segment("a", added_at=1.0), make.segment("b"), make.segment("stranger"))
    rows = of_current_files(features.segments(), collection.videos())
    assert rows["video_id"].to_pylist() == ["b"]


def test_shared_vectors_are_read_once_and_serve_both(collection):
    features = collection.features()
    declare_spec(features.store, {**make.SPEC, "shared": True, "student": {"dim": 2, "token_dim": 4}})
    make.put(features.video_shards, make.segment("a", student=None))
    (video,) = features.read_videos(features.complete())
    assert video.student is video.teacher
    (video,) = features.read_videos(features.complete(), columns=("student",))
    assert (video.student.shape, video.teacher.shape) == ((2, 2), (0, 2))


def test_nothing_at_all_is_empty_tables(collection):
    features = collection.features()
    assert len(collection.videos()) == len(collection.queries()) == len(collection.removed()) == 0
    assert len(features.segments()) == len(features.complete()) == len(features.queries()) == 0
    with pytest.raises(ValueError, match=r"no collection at .*root; `prvr ingest` or `prvr import` makes one"):
        existing_collection(collection.store.uri)
    with pytest.raises(ValueError, match=r"nothing at .*default: no spec\.json"):
        features.spec()


def test_a_table_without_the_columns_is_refused(collection):
    with pytest.raises((ValueError, KeyError)):
        collection.query_shards.append(pa.table({"query_id": ["a"]}))
    assert collection.query_shards.live() == []


def test_a_damaged_shard_is_named(collection):
    make.put(collection.query_shards, make.query("a"))
    collection.query_shards.store.put("shard-x.parquet", b"PAR1 and nothing more")
    with pytest.raises(ShardError, match=r"queries/shard-x\.parquet cannot be read"):
        collection.queries()


def test_a_spec_that_differs_is_refused_naming_every_difference(collection):
    store = collection.features().store
    spec = {**make.SPEC, "fps": 1}
    assert declare_spec(store, spec) == declare_spec(store, spec)
    other = {**make.SPEC, "student": {"dim": 5, "token_dim": 4}, "fps": 2}
    with pytest.raises(ValueError, match=r"fps is 1 there, 2 here; student\.dim is 3 there, 5 here"):
        declare_spec(store, other)


def test_a_newer_format_is_refused(collection):
    put_json(collection.features().store, "spec.json", {"format_version": schema.FORMAT_VERSION + 1})
    with pytest.raises(ValueError, match=r"format_version 2, newer than this program's 1"):
        read_spec(collection.features().store)


@pytest.mark.parametrize("seed", range(5))
def test_first_of_and_by_shard_equal_a_loop(seed):
    rng = np.random.default_rng(seed)
    rows = [
        {"key": f"k{rng.integers(4)}", "part": int(rng.integers(3)), "shard": f"s{rng.integers(5)}", "row": row}
        for row in range(int(rng.integers(1, 60)))
    ]
    chosen = {}
    for row in sorted(rows, key=lambda row: (row["shard"], -row["row"]), reverse=True):
        chosen.setdefault((row["key"], row["part"]), row)
    table = pa.Table.from_pylist(rows)
    found = first_of(table, ["key", "part"], [("shard", "descending"), ("row", "ascending")]).to_pylist()
    assert {(row["key"], row["part"]): row for row in found} == chosen
    assert len(found) == len(chosen)
    expected = {
        name: sorted(row["row"] for row in rows if row["shard"] == name) for name in {row["shard"] for row in rows}
    }
    split = [(name, in_shard.tolist()) for name, in_shard in by_shard(table)]
    assert split == sorted(expected.items())


def test_shards_sort_by_the_time_of_their_writing(collection):
    names = [make.put(collection.query_shards, make.query("a", f"text {n}")) for n in range(20)]
    assert names == sorted(names)
    assert collection.queries()["text"].to_pylist() == ["text 19"]


def test_many_small_shards_are_scanned_with_their_places(collection):
    folder = collection.query_shards
    names = [make.put(folder, make.query(f"a{n}"), make.query(f"b{n}")) for n in range(30)]
    rows = folder.scan(["query_id"])
    expected = [
        {"query_id": f"{kind}{n}", "shard": names[n], "row": row} for n in range(30) for row, kind in enumerate("ab")
    ]
    assert rows.to_pylist() == expected
    assert rows["shard"].type == pa.large_string(), "the names of 42 million rows overflow a column of plain strings"
    assert folder.live() == names
    assert ShardFolder(folder.store, folder.schema, (names[3],)).scan(["query_id"])["query_id"].to_pylist() == [
        "a3",
        "b3",
    ]


def test_few_videos_wait_for_their_rest_though_shards_are_named_at_random(features, monkeypatch):
    """Four decoders work on 60 videos by their ids, a segment each in turn; shards of eight segments come of it."""
    num_videos, num_segments, num_decoders, rows_per_shard = 60, 6, 4, 8
    rng = np.random.default_rng(0)
    left = {f"v{number:02d}": list(range(num_segments)) for number in range(num_videos)}
    rows = []
    while left:
        video_id = list(left)[rng.integers(min(num_decoders, len(left)))]
        number = left[video_id].pop(0)
        rows.append(make.segment(video_id, number, is_last=number == num_segments - 1))
        left = {name: numbers for name, numbers in left.items() if numbers}
    for start in range(0, len(rows), rows_per_shard):
        table = pa.Table.from_pylist(rows[start : start + rows_per_shard], schema.FEATURE_VIDEOS)
        features.video_shards.append(table, f"{rng.bytes(8).hex()}.parquet")

    num_read, waiting, read_table = [0], [], features_module.read_table

    def counting(*arguments):
        table = read_table(*arguments)
        num_read[0] += len(table)
        return table

    monkeypatch.setattr(features_module, "read_table", counting)
    complete = features.complete()
    num_read[0] = 0
    for count, _ in enumerate(features.read_videos(complete)):
        waiting.append(num_read[0] - count * num_segments)
    assert len(waiting) == num_videos
    # A decoder's share of the videos under way, and the shard at hand; read by name it would be half of all 360.
    assert max(waiting) <= 2 * num_decoders * num_segments + rows_per_shard

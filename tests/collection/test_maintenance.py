"""Compaction, gc, removal and status: readers see the same before, while and after, and no plan loses a shard."""

import json
import os
import time
from pathlib import Path

import pytest
from support import collection_rows as make

from prvr_ray.collection import ShardFolder, declare_spec, history, maintenance, newest_windows, open_collection
from prvr_ray.collection.maintenance import compact, gc, remove, status
from prvr_ray.storage import ShardError, put_json, read_table


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """A root of each kind; s3:// is the test server's."""
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3_root")


@pytest.fixture
def local_root(tmp_path):
    return str(tmp_path / "root")


def filled(root):
    """A collection with two videos and a query, each in a shard of its own."""
    collection = open_collection(root)
    features = collection.features()
    declare_spec(features.store, make.SPEC)
    for video_id in ("a", "b"):
        make.put(collection.video_shards, make.video(video_id))
        make.put(features.video_shards, make.segment(video_id))
        make.put(features.query_shards, make.encoded_query(f"q-{video_id}"))
        make.put(collection.query_shards, make.query(f"q-{video_id}", video_ids=(video_id,)))
        make.put(make.index_folder(collection), make.window(video_id))
    return collection


def seen(collection):
    """Everything that readers see, without the places where it stands."""
    features = collection.features()
    windows = newest_windows(make.index_folder(collection), collection.removed())
    without_place = [
        table.drop_columns(["shard", "row"]).to_pylist()
        for table in (features.segments(), features.complete().sort_by("video_id"), features.queries(), windows)
    ]
    videos = sorted(
        (video.video_id, video.added_at, video.teacher.tolist(), video.student.tolist(), video.timestamps_s.tolist())
        for video in features.read_videos(features.complete())
    )
    queries = sorted((query.query_id, query.teacher.tolist()) for query in features.read_queries(features.queries()))
    tables = [collection.videos().to_pylist(), collection.queries().to_pylist(), collection.removed().to_pylist()]
    return [*tables, *map(ordered, without_place), videos, queries]


def ordered(rows):
    return sorted(
        rows, key=lambda row: (row.get("video_id") or row.get("query_id"), row.get("segment"), row.get("window"))
    )


def shards(collection):
    """Names of the live shards by table."""
    return {table.name: table.folder.live() for table in maintenance._tables(collection)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target_bytes", [1, 20_000, 10**9])
def test_readers_see_the_same_after_a_compaction(local_root, seed, target_bytes):
    collection = open_collection(local_root)
    make.put_clashes(collection, seed)
    before = seen(collection)
    compact(local_root, target_bytes=target_bytes)
    assert seen(collection) == before
    gc(local_root, retention_days=0)
    assert seen(collection) == before
    make.put_clashes(collection, seed + 100)
    before = seen(collection)
    compact(local_root, target_bytes=target_bytes)
    assert seen(collection) == before


def test_small_neighbours_become_one_sorted_shard_of_rows_that_count(root):
    collection = open_collection(root)
    make.put_clashes(collection, 3)
    features = collection.features()
    expected = {
        (row["video_id"], row["segment"]) for row in features.segments().select(["video_id", "segment"]).to_pylist()
    }
    summary = compact(root)
    assert summary["compacted"]["features/default/videos"]["shards_replaced"] == 6
    assert {name: len(names) for name, names in shards(collection).items()} == dict.fromkeys(
        ["videos", "queries", "features/default/videos", "features/default/queries", "index/main"], 1
    )
    (name,) = features.video_shards.live()
    rows = read_table(features.video_shards.store, name, ["video_id", "segment"]).to_pylist()
    assert [(row["video_id"], row["segment"]) for row in rows] == sorted(expected)


def test_a_second_compaction_has_nothing_to_do(local_root):
    collection = open_collection(local_root)
    make.put_clashes(collection, 4)
    compact(local_root)
    standing = shards(collection)
    assert compact(local_root)["compacted"] == {}
    assert shards(collection) == standing


def test_new_shards_keep_to_their_size_and_large_ones_stay(local_root):
    collection = open_collection(local_root)
    names = [make.put(collection.query_shards, make.query(f"q{n}", "x" * 10_000)) for n in range(10)]
    large = make.put(collection.query_shards, make.query("r", "x" * 60_000))
    compact(local_root, target_bytes=45_000)
    sizes = {item.key: item.size for item in collection.query_shards.store.list()}
    live = collection.query_shards.live()
    assert large in live
    assert len(set(names) & set(live)) <= 1  # one may be left over, alone
    assert [sizes[name] < 90_000 for name in live] == [True] * len(live)
    assert len(live) < len(names)
    assert len(collection.queries()) == len(names) + 1


def test_an_edit_that_comes_after_a_compaction_wins(local_root):
    collection = filled(local_root)
    compact(local_root)
    make.put(collection.query_shards, make.query("q-a", "edited"))
    assert collection.queries()["text"].to_pylist()[0] == "edited"
    compact(local_root)
    assert collection.queries()["text"].to_pylist()[0] == "edited"


def test_names_do_not_grow_with_every_compaction(local_root):
    collection = filled(local_root)
    for number in range(5):
        make.put(collection.query_shards, make.query(f"new {number}"))
        compact(local_root)
    assert len(collection.query_shards.live()[0]) < 60


def test_of_a_killed_compaction_the_groups_that_it_did_stay_done(local_root, monkeypatch):
    collection = open_collection(local_root)
    names = [make.put(collection.query_shards, make.query(f"q{n}", "x" * 10_000)) for n in range(4)]
    append, appended = ShardFolder.append, []

    def killed(folder, table, name=None):
        if appended:
            raise KeyboardInterrupt
        appended.append(append(folder, table, name))
        return appended[0]

    monkeypatch.setattr(ShardFolder, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        compact(local_root, target_bytes=25_000)
    assert collection.query_shards.live() == [*appended, *names[2:]]
    assert collection.queries()["query_id"].to_pylist() == ["q0", "q1", "q2", "q3"]


def test_a_shard_that_comes_while_a_compaction_reads_is_kept(local_root, monkeypatch):
    collection = filled(local_root)
    features = collection.features()

    def read_and_append(store, key, columns=None):
        if store.uri == features.video_shards.store.uri and not late:
            late.append(make.put(features.video_shards, make.segment("late")))
        return read_table(store, key, columns)

    late: list[str] = []
    monkeypatch.setattr(maintenance, "read_table", read_and_append)
    compact(local_root)
    assert late[0] in features.video_shards.live()
    assert features.complete()["video_id"].to_pylist() == ["a", "b", "late"]


def test_two_compactions_at_once_lose_and_double_nothing(local_root, monkeypatch):
    collection = open_collection(local_root)
    make.put_clashes(collection, 5)
    before = seen(collection)
    is_first = True

    def put_late(store, key, value):
        nonlocal is_first
        if is_first:
            is_first = False
            compact(local_root)
        put_json(store, key, value)

    monkeypatch.setattr(maintenance, "put_json", put_late)
    compact(local_root)
    assert seen(collection) == before
    compact(local_root)
    assert seen(collection) == before
    assert {len(names) for names in shards(collection).values()} == {1}


def test_a_compaction_that_dies_before_its_record_leaves_readers_as_they_were(local_root, monkeypatch):
    collection = open_collection(local_root)
    make.put_clashes(collection, 6)
    before = seen(collection)

    def die(*_):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "put_json", die)
        with pytest.raises(InterruptedError):
            compact(local_root)
    assert seen(collection) == before
    compact(local_root)
    assert seen(collection) == before


def test_a_damaged_shard_stops_a_compaction_by_name_and_replaces_nothing(local_root):
    collection = filled(local_root)
    folder = collection.features().video_shards
    folder.store.put("shard-damaged.parquet", b"PAR1")
    with pytest.raises(ShardError, match="shard-damaged"):
        compact(local_root)
    assert len(folder.live()) == 3


def test_a_reader_that_listed_before_reads_on_until_the_retention_ends(root):
    collection = filled(root)
    features = collection.features()
    listed = features.pinned(features.plan())
    before = sorted(video.video_id for video in listed.read_videos(listed.complete()))
    compact(root)
    kept = gc(root)
    assert (kept["shards_deleted"], kept["shards_kept_as_young"]) == (0, 10)
    assert sorted(video.video_id for video in listed.read_videos(listed.complete())) == before == ["a", "b"]
    deleted = gc(root, retention_days=0)
    assert (deleted["shards_deleted"], deleted["shards_kept_as_young"]) == (10, 0)
    with pytest.raises(ShardError, match="is missing"):
        listed.complete()
    assert sorted(video.video_id for video in features.read_videos(features.complete())) == ["a", "b"]


def test_the_retention_counts_from_the_compaction(local_root, monkeypatch):
    filled(local_root)
    compact(local_root)
    now = time.time()
    for days, deleted in ((6.9, 0), (7.1, 10)):
        monkeypatch.setattr(maintenance.time, "time", lambda days=days: now + days * 86_400)
        assert gc(local_root)["shards_deleted"] == deleted


@pytest.mark.parametrize(
    ("folder", "done"), [("runs", "summary.json"), ("tune", "summary.json"), ("scores", "finished.json")]
)
def test_an_unfinished_plan_keeps_its_shards_across_compaction_and_gc(local_root, folder, done):
    collection = filled(local_root)
    features = collection.features()
    plan = {"features": "default", "shards": {"features/default/videos": features.plan()["videos"]}}
    put_json(collection.store, f"{folder}/job/plan.json", plan)
    compact(local_root)
    kept = gc(local_root, retention_days=0)
    assert kept["shards_deleted"] == 8
    assert kept["shards_kept_for_plans"] == {f"{folder}/job/plan.json": 2}
    pinned = features.pinned({"videos": plan["shards"]["features/default/videos"], "queries": []})
    assert [video.video_id for video in pinned.read_videos(pinned.complete())] == ["a", "b"]
    put_json(collection.store, f"{folder}/job/{done}", {})
    assert gc(local_root, retention_days=0)["shards_deleted"] == 2


def test_a_record_goes_when_its_shards_have_gone_before(local_root):
    collection = filled(local_root)
    compact(local_root)
    store = collection.query_shards.store
    counts = []
    for _ in range(3):
        gc(local_root, retention_days=0)
        counts.append((len(store.list("replaced-")), len(store.list("shard-"))))
    assert counts == [(1, 1), (0, 1), (0, 1)]
    assert len(collection.queries()) == 2


def test_what_a_killed_writer_left_goes_when_no_writer_can_be_at_it(local_root):
    filled(local_root)
    left, at_work = (Path(local_root) / "videos" / f".unfinished-{name}" for name in ("left", "at-work"))
    for path, age_s in ((left, 4000), (at_work, 10)):
        path.write_bytes(b"half a shard")
        os.utime(path, (time.time() - age_s,) * 2)
    assert gc(local_root, retention_days=0)["unfinished_files_deleted"] == 1
    assert (left.exists(), at_work.exists()) == (False, True)


def test_gc_before_any_compaction_deletes_nothing(local_root):
    collection = filled(local_root)
    before = collection.store.list()
    assert gc(local_root, retention_days=0)["shards_deleted"] == 0
    assert collection.store.list() == before


def test_a_removed_video_is_in_no_table_and_its_features_go_with_the_next_compaction(root):
    collection = filled(root)
    features = collection.features()
    remove(root, "a")
    for _ in range(2):
        assert collection.videos()["video_id"].to_pylist() == ["b"]
        assert collection.removed().to_pylist() == ["a"]
        assert features.segments()["video_id"].to_pylist() == ["b"]
        assert [video.video_id for video in features.read_videos(features.complete())] == ["b"]
        windows = newest_windows(make.index_folder(collection), collection.removed())
        assert windows["video_id"].to_pylist() == ["b"]
        compact(root)
    gc(root, retention_days=0)
    for folder in (features.video_shards, make.index_folder(collection)):
        assert folder.scan(["video_id"])["video_id"].to_pylist() == ["b"]
    assert collection.removed().to_pylist() == ["a"]


def test_removal_holds_against_a_clock_that_was_ahead(local_root):
    collection = filled(local_root)
    tomorrow = time.time() + 86_400
    name = f"shard-{int(tomorrow * 1e9):020d}-00000000.parquet"
    make.put(collection.video_shards, make.video("a", tomorrow), name=name)
    remove(local_root, "a")
    assert collection.videos()["video_id"].to_pylist() == ["b"]


def test_only_a_video_that_is_there_can_be_removed(local_root):
    filled(local_root)
    with pytest.raises(ValueError, match=r"video 'c' is not in .*root"):
        remove(local_root, "c")
    remove(local_root, "a")
    with pytest.raises(ValueError, match="video 'a' was removed before"):
        remove(local_root, "a")


@pytest.mark.parametrize("command", [compact, gc, status])
def test_no_collection_is_an_error(local_root, command):
    with pytest.raises(ValueError, match="no collection at"):
        command(local_root)
    assert not Path(local_root).exists()


def test_status_counts_every_video_once(local_root):
    collection = open_collection(local_root)
    features = collection.features()
    names = ("whole", "long", "broken", "slow", "retried", "half", "none", "changed", "gone")
    make.put(collection.video_shards, *(make.video(name) for name in names), make.video("changed", 2.0))
    make.put(collection.video_shards, make.video("gone", 2.0, removed=True))
    make.put(
        features.video_shards,
        *(make.segment(name) for name in ("whole", "retried", "changed", "gone")),
        make.segment("long", 0, is_last=False),
        make.segment("long", 1),
        make.segment("half", 0, is_last=False),
        make.failure("broken"),
        make.failure("slow", error_class="timeout"),
        make.failure("retried", error_class="timeout"),
        make.failure("long", 2),  # of an earlier run, behind what is the last segment now
    )
    history.record(local_root, "ingest", {"skipped": 3})
    history.record(local_root, "train", {})
    history.record(local_root, "ingest", {"skipped": 4})
    assert status(local_root)["videos"] == {
        "total": 8,  # all but the one that is gone
        "ingested": 3,  # whole, long, retried
        "failed": 2,
        "missing": 3,  # half, none, changed
        "skipped": 4,
        "by_error_class": {"decode": 1, "timeout": 1},
    }


def test_status_counts_partial_videos_and_names_the_worst(local_root):
    collection = open_collection(local_root)
    names = ("whole", "cut", "hole", "almost")
    make.put(collection.video_shards, *map(make.video, names))
    make.put(
        collection.features().video_shards,
        make.segment("whole", decoded_share=1.0),
        make.segment("cut", decoded_share=0.04),
        make.segment("hole", 0, is_last=False, decoded_share=1.0),
        make.segment("hole", 1, decoded_share=0.5),
        make.segment("almost", decoded_share=0.96),
    )
    found = status(local_root)["videos"]
    assert found["ingested"] == 4
    assert (found["partial"], found["partial_examples"]) == (2, ["cut (4%)", "hole (75%)"])


def test_status_lists_runs_indexes_and_scores(local_root):
    collection = filled(local_root)
    for key in ("runs/one/plan.json", "runs/one/summary.json", "runs/two/plan.json", "scores/s/plan.json"):
        put_json(collection.store, key, {})
    collection.store.put("scores/s/part-0.parquet", b"")
    found = status(local_root)
    assert list(found) == ["videos", "captions", "runs", "indexes", "scores"]
    assert found["runs"] == {"one": {"finished": True}, "two": {"finished": False}}
    assert found["indexes"] == {"main": {"shards": 2}}
    assert found["scores"] == {"s": {"finished": False, "shards": 1}}
    assert json.loads(json.dumps(found)) == found


def test_status_of_captions_alone_is_all_zeros(local_root):
    make.put(open_collection(local_root).query_shards, make.query("q"))
    counts = status(local_root)["videos"]
    assert counts == dict.fromkeys(["total", "ingested", "failed", "missing", "skipped"], 0) | {"by_error_class": {}}

"""The index holds what the student says of every window, and grows by what is new."""

import errno
import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from support.served import HIDDEN_DIM, MAX_FRAMES, add_run, add_videos

from prvr_ray import schema
from prvr_ray.collection import ShardFolder, declare_spec, open_collection
from prvr_ray.collection.shard_writer import raise_put_errors
from prvr_ray.config import IndexSettings
from prvr_ray.index.index import IndexFolder
from prvr_ray.index.manifest import live_counts
from prvr_ray.index.student_encoder import Windowing
from prvr_ray.runs.run import open_run
from prvr_ray.schema import unpack_times, unpack_vectors
from prvr_ray.stages import index as stage
from prvr_ray.stages.index import index
from prvr_ray.storage import LocalStore, ShardError, put_json, read_table
from prvr_ray.student.batching import normalize, sample_uniform

SETTINGS = IndexSettings(pass_frames=64, shard_bytes=8192)
CUT = SETTINGS.model_copy(update={"windowing": "windows", "overlap_frames": 3})


def rows_of(root, name):
    """(video_id, window) -> row, as `IndexFolder.windows` resolves them."""
    folder = IndexFolder(open_collection(str(root)), name)
    found = {}
    for row in folder.windows().to_pylist():
        table = read_table(folder.store, row["shard"]).slice(row["row"], 1)
        found[row["video_id"], row["window"]] = table.to_pylist()[0]
    return found


def files_of(root):
    """Path -> content and time of writing of every file of index `i`."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (root / "index" / "i").iterdir()}


def encoded(student, frames_FD):
    inputs = torch.from_numpy(normalize(frames_FD))[None]
    branches = student.encode_frames(inputs, torch.ones(inputs.shape[:2]))
    return {name: torch.nn.functional.normalize(x[0], dim=1).detach().numpy() for name, x in branches.items()}


@pytest.mark.parametrize(("settings", "runs_on"), [(SETTINGS, "in_process"), (CUT, "in_process"), (CUT, "local_ray")])
def test_rows_are_the_students_unit_vectors_of_each_window(tmp_path, request, settings, runs_on):
    request.getfixturevalue(runs_on)
    features = add_videos(tmp_path, [f"v{i:02d}" for i in range(30)])
    student = add_run(tmp_path)
    summary = index(settings, root=str(tmp_path), run="run", index="i")
    found = rows_of(tmp_path, "i")
    assert {video_id for video_id, _ in found} == set(features)
    assert summary["videos"] == 30
    assert summary["windows"] == len(found)
    assert len(IndexFolder(open_collection(str(tmp_path)), "i").shards.live()) > 1
    for (video_id, number), row in found.items():
        frames, edges = features[video_id], unpack_times(row["edges_s"])
        if settings is CUT and len(frames) > MAX_FRAMES:
            start = min(number * (MAX_FRAMES - 3), len(frames) - MAX_FRAMES)
            frames = frames[start : start + MAX_FRAMES]
            expected_edges = np.arange(start, start + MAX_FRAMES + 1)
        else:
            assert number == 0
            expected_edges = np.arange(len(frames) + 1) if len(frames) <= MAX_FRAMES else [0, len(frames)]
        assert edges[[0, -1]].tolist() == [expected_edges[0], expected_edges[-1]]
        assert row["num_frames"] == len(edges) - 1 == min(len(frames), MAX_FRAMES)
        for branch, vectors_FD in encoded(student, sample_uniform(frames, MAX_FRAMES)).items():
            np.testing.assert_allclose(unpack_vectors(row[branch], HIDDEN_DIM), vectors_FD, atol=1e-3)


@pytest.mark.parametrize(("videos_per_task", "sizes"), [(10, [16, 16, 8]), (20, [10, 10, 10, 10])])
def test_shards_of_a_task_are_of_one_size(tmp_path, in_process, monkeypatch, videos_per_task, sizes):
    """16 windows of 8 frames, 2 branches and 16 features fill 8,192 bytes; a task is no smaller than that."""
    monkeypatch.setattr(stage, "_VIDEOS_PER_TASK", videos_per_task)
    add_videos(tmp_path, [f"v{i:02d}" for i in range(40)])
    add_run(tmp_path)
    index(SETTINGS, root=str(tmp_path), run="run", index="i")
    rows = IndexFolder(open_collection(str(tmp_path)), "i").shards.scan(["video_id"])
    assert sorted(rows["shard"].value_counts().field("counts").to_pylist(), reverse=True) == sizes
    assert sorted(rows["video_id"].to_pylist()) == [f"v{i:02d}" for i in range(40)]


@pytest.mark.parametrize(
    ("lengths", "rows_per_shard", "num_indexers", "sizes"),
    [
        ([5], 100, 4, [1]),
        ([5] * 1000, 683, 1, [683, 317]),  # as many as fill a shard
        ([5] * 1000, 683, 4, [256, 256, 256, 232]),  # something for every indexer
        ([5] * 300, 200, 8, [256, 44]),  # but not tiny ones
        ([8 * 16 * 4] * 20, 16, 1, [2] * 10),  # 64 windows a video, 8 shards of 16 at most
    ],
)
def test_tasks_fill_shards_and_give_every_indexer_work(lengths, rows_per_shard, num_indexers, sizes):
    """Videos of segments of at most 100 frames, cut into windows of 8."""
    rows = [
        {"video_id": f"v{number:04d}", "num_frames": min(100, length - start)}
        for number, length in enumerate(lengths)
        for start in range(0, length, 100)
    ]
    tasks = stage._divide_work(pa.Table.from_pylist(rows), Windowing("windows", 8, 0), rows_per_shard, num_indexers)
    assert [pc.count_distinct(task["video_id"]).as_py() for task in tasks] == sizes
    assert pa.concat_tables(tasks).to_pylist() == rows


def indexing_worker(root, folder=None):
    """A worker as `prvr index` starts it, for shards of 16 windows, and all the work there is."""
    collection, run = open_collection(str(root)), open_run(str(root), "run")
    features = collection.features()
    spec = stage._index_spec(run, features, SETTINGS)
    target = IndexFolder(collection, "i")
    declare_spec(target.store, spec)
    plan = stage._IndexPlan(features, run, spec, 64, 0.0, folder or target.shards, "shard-1", 16)
    none = live_counts(target.shards, {})
    return stage._IndexVideos(plan), stage._pending(features, none, plan.windowing)


def test_a_repeated_task_puts_the_same_shards(tmp_path):
    add_videos(tmp_path, [f"v{i:02d}" for i in range(40)])
    add_run(tmp_path)
    worker, work = indexing_worker(tmp_path)
    acknowledged = [list(worker(work)) for _ in range(2)]
    assert [len(rows) for rows in acknowledged[0]] == [14, 14, 12]
    assert len(list((tmp_path / "index" / "i").glob("shard-*"))) == 3
    assert acknowledged[0] == acknowledged[1]


def test_the_first_shard_that_cannot_be_put_is_a_tasks_last(tmp_path):
    add_videos(tmp_path, [f"v{i:02d}" for i in range(100)])
    add_run(tmp_path)
    put = []

    class FullDisk(LocalStore):
        def put(self, key, data):
            put.append(key)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), key)

    worker, work = indexing_worker(tmp_path, ShardFolder(FullDisk(str(tmp_path / "full")), schema.INDEX))
    (acknowledged,) = worker(work)
    assert len(put) <= 3  # of 7: two more were on their way
    with pytest.raises(OSError, match="No space left on device"):
        raise_put_errors(acknowledged)


def test_a_second_run_adds_only_new_and_changed_videos(tmp_path, in_process):
    add_videos(tmp_path, ["a", "b", "c"])
    add_run(tmp_path)
    index(SETTINGS, root=str(tmp_path), run="run", index="i")
    assert index(SETTINGS, root=str(tmp_path), run="run", index="i")["videos"] == 0
    before, files = rows_of(tmp_path, "i"), files_of(tmp_path)
    add_videos(tmp_path, ["d", "b"], seed=1, added_at=2.0)
    assert index(SETTINGS, root=str(tmp_path), run="run", index="i", dry_run=True)["videos"] == 2
    assert index(SETTINGS, root=str(tmp_path), run="run", index="i")["videos"] == 2
    after = rows_of(tmp_path, "i")
    assert {video_id for video_id, _ in after} == {"a", "b", "c", "d"}
    assert after["a", 0] == before["a", 0]
    assert after["b", 0]["inheritance"] != before["b", 0]["inheritance"]
    assert files_of(tmp_path).items() > files.items()  # what stood stands untouched


def test_a_video_of_which_a_killed_job_put_some_windows_is_indexed_whole(tmp_path, in_process):
    """Windows of one video lie in two shards; a job that is killed between the two leaves the first."""
    add_videos(tmp_path, [f"v{i:02d}" for i in range(30)])
    add_run(tmp_path)
    index(CUT, root=str(tmp_path), run="run", index="i")
    whole, folder = rows_of(tmp_path, "i"), IndexFolder(open_collection(str(tmp_path)), "i")
    windows = folder.windows().to_pylist()
    shards_of = {video_id: {row["shard"] for row in windows if row["video_id"] == video_id} for video_id, _ in whole}
    kept = next(min(shards) for shards in shards_of.values() if len(shards) > 1)
    num_whole = sum(shards == {kept} for shards in shards_of.values())
    for name in {*files_of(tmp_path)} - {kept, "spec.json", "manifest-00000000.json"}:
        folder.store.delete(name)
    assert folder.plan() == ([], [])  # readers see nothing of a job that is killed
    assert index(CUT, root=str(tmp_path), run="run", index="i")["videos"] == 30 - num_whole
    assert rows_of(tmp_path, "i").keys() == whole.keys()
    shards, missing = folder.plan()
    assert sum(shard["rows"] for shard in shards) > len(whole)  # some windows stand twice
    assert sum(shard["rows"] - len(shard["skip"]) for shard in shards) == len(whole)  # and count once
    assert not missing
    assert index(CUT, root=str(tmp_path), run="run", index="i")["videos"] == 0


def test_a_lost_shard_is_found_when_it_is_read_and_made_again_by_the_next_run(tmp_path, in_process):
    add_videos(tmp_path, [f"v{i:02d}" for i in range(30)])
    add_run(tmp_path)
    index(SETTINGS, root=str(tmp_path), run="run", index="i")
    folder, whole = IndexFolder(open_collection(str(tmp_path)), "i"), rows_of(tmp_path, "i")
    shards, missing = folder.plan()
    assert not missing
    folder.store.delete(shards[0]["name"])
    with pytest.raises(ShardError, match=f"{shards[0]['name']} is missing"):
        folder.load(shards[0], ["inheritance"], HIDDEN_DIM)
    assert index(SETTINGS, root=str(tmp_path), run="run", index="i")["videos"] == shards[0]["rows"]
    assert rows_of(tmp_path, "i").keys() == whole.keys()


def test_one_branch_leaves_the_other_column_empty(tmp_path, in_process):
    add_videos(tmp_path, ["a"])
    add_run(tmp_path, branches=("exploration",))
    index(SETTINGS, root=str(tmp_path), run="run", index="i")
    row = rows_of(tmp_path, "i")["a", 0]
    assert row["inheritance"] is None
    assert row["exploration"]


def test_another_run_or_windowing_is_refused_and_named(tmp_path, in_process):
    add_videos(tmp_path, ["a"])
    add_run(tmp_path)
    add_run(tmp_path, "other", seed=1)
    index(SETTINGS, root=str(tmp_path), run="run", index="i")
    with pytest.raises(ValueError, match="run is 'run' there, 'other' here"):
        index(SETTINGS, root=str(tmp_path), run="other", index="i")
    with pytest.raises(ValueError, match=r"windowing.mode is 'whole' there, 'windows' here"):
        index(CUT, root=str(tmp_path), run="run", index="i")
    run, best = open_run(str(tmp_path), "run"), "checkpoints/best-00009.safetensors"
    run.store.put(best, b"of a later epoch")
    put_json(run.store, "best.json", {"weights": best})
    with pytest.raises(ValueError, match=r"weights is 'checkpoints/best-00000.safetensors' there, .*best-00009"):
        index(SETTINGS, root=str(tmp_path), run="run", index="i")


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        ({"run": "nobody"}, "no run at|has not begun"),
        ({"settings": SETTINGS.model_copy(update={"window_frames": 9})}, "takes 8"),
    ],
)
def test_unusable_settings_are_refused(tmp_path, ask, match):
    add_videos(tmp_path, ["a"])
    add_run(tmp_path)
    settings = ask.pop("settings", SETTINGS)
    with pytest.raises(ValueError, match=match):
        index(settings, **{"root": str(tmp_path), "run": "run", "index": "i", **ask})

"""An index of the teacher alone: no run, no caption, and the answers of plain float64 cosines."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.in_process import local_dataset_of
from support.score_world import answers, moment_of
from support.served import SPEC, TEACHER_DIM, add_queries, add_run, add_videos, unevenly
from support.small_clip import write_small_clip

from prvr_ray import schema
from prvr_ray.collection import open_collection
from prvr_ray.collection.maintenance import compact, remove
from prvr_ray.config import IndexSettings, ScoreSettings
from prvr_ray.encoders import load_encoder
from prvr_ray.notebook import search
from prvr_ray.stages.index import index
from prvr_ray.stages.score import score
from prvr_ray.storage import table_to_bytes

SETTINGS = IndexSettings(window_frames=8, overlap_frames=3, shard_bytes=2048)
IDS = [f"v{i:02d}" for i in range(20)]


def add_index(root, settings=SETTINGS, **given):
    return index(settings, root=str(root), index="i", teacher=True, **given)


def windows_of(root, settings=SETTINGS):
    """video_id -> per window, its unit frames in float64 and its time edges, cut by hand from the features."""
    features, found = open_collection(str(root)).features(), {}
    limit, step = settings.window_frames, settings.window_frames - settings.overlap_frames
    for video in features.read_videos(features.complete()):
        n, times = len(video.teacher), video.timestamps_s
        edges = np.array([min(0.0, times[0]), *(times[1:] + times[:-1]) / 2, video.duration_s])
        starts = [0] if n <= limit else sorted({*range(0, n - limit, step), n - limit})
        frames = video.teacher.astype(np.float32)
        frames = (frames / np.linalg.norm(frames, axis=1, keepdims=True)).astype(np.float16).astype(np.float64)
        found[video.video_id] = [(frames[s : s + limit], edges[s : s + limit + 1]) for s in starts]
    return found


def expected(windows, query_D):
    """[(video_id, score, (peak, start, end))], best first."""
    best = []
    for video_id, of_video in windows.items():
        curves = [(frames @ query_D, edges) for frames, edges in of_video]
        curve, edges = max(curves, key=lambda item: item[0].max())
        best.append((video_id, curve.max(), moment_of(curve, edges)))
    return sorted(best, key=lambda item: -item[1])


@pytest.fixture
def indexed_here(monkeypatch, local_ray):
    """`index` calls its worker in this process."""
    monkeypatch.setattr("prvr_ray.stages.index.make_dataset", local_dataset_of)


@pytest.fixture
def world(tmp_path, indexed_here):
    """Videos in two files, nothing else."""
    add_videos(tmp_path, IDS[:12], times=unevenly)
    add_index(tmp_path)
    add_videos(tmp_path, IDS[12:], seed=1, times=unevenly)
    return tmp_path


def test_a_split_is_answered_as_plain_cosines_answer_it(world, without_ray):
    added = add_index(world)  # only what is new
    assert added["videos"] == 8
    assert add_index(world)["videos"] == 0
    add_queries(world, {f"q{i}": [IDS[i]] for i in range(5)})
    settings = ScoreSettings(top_k=6, num_moments=2)
    summary = score(settings, root=str(world), index="i", queries="test", output="job")
    assert summary["queries"] == 5
    windows, features = windows_of(world), open_collection(str(world)).features()
    vectors = {q.query_id: q.teacher.astype(np.float64) for q in features.read_queries(features.queries())}
    for query_id, rows in answers(world).items():
        wanted = expected(windows, vectors[query_id] / np.linalg.norm(vectors[query_id]))[:6]
        assert [row["video_id"] for row in rows] == [video_id for video_id, _, _ in wanted]
        np.testing.assert_allclose([row["score"] for row in rows], [value for _, value, _ in wanted], atol=2e-6)
        for row, (_, _, times) in zip(rows[:2], wanted, strict=False):
            assert (row["peak_s"], row["start_s"], row["end_s"]) == pytest.approx(times)


def test_a_sentence_is_answered_by_the_teachers_own_text_encoder(tmp_path, indexed_here):
    name, _ = write_small_clip(tmp_path / "encoder", embed_dim=TEACHER_DIM)
    encoder = load_encoder(name, device="cpu")
    teacher = {**asdict(encoder.spec), "dim": TEACHER_DIM}
    root = tmp_path / "root"
    add_videos(root, IDS, spec={**SPEC, "teacher": teacher})
    add_index(root)
    found = search(open_collection(str(root)), "i", "a red circle moves", k=20)
    query_D = encoder.encode_text(["a red circle moves"])[0][0].astype(np.float64)
    wanted = expected(windows_of(root), query_D / np.linalg.norm(query_D))
    np.testing.assert_allclose([answer.score for answer in found], [value for _, value, _ in wanted], atol=1e-3)
    assert found[0].video_id == wanted[0][0]


def test_compacting_and_removing_work_as_on_any_index(world, without_ray):
    add_index(world)
    add_queries(world, {f"q{i}": [IDS[i]] for i in range(5)})
    score(ScoreSettings(top_k=20), root=str(world), index="i", queries="test", output="before")
    compact(str(world))
    score(ScoreSettings(top_k=20), root=str(world), index="i", queries="test", output="after")
    assert answers(world, "after") == answers(world, "before")
    remove(str(world), IDS[3])
    score(ScoreSettings(top_k=20), root=str(world), index="i", queries="test", output="removed")
    left = {
        q: [row["video_id"] for row in rows if row["video_id"] != IDS[3]] for q, rows in answers(world, "after").items()
    }
    assert {q: [row["video_id"] for row in rows] for q, rows in answers(world, "removed").items()} == left


def test_shards_of_an_earlier_version_are_compacted_with_later_ones(tmp_path, indexed_here):
    """They have no column `teacher`; a student's index still gets new ones beside them."""
    add_videos(tmp_path, IDS[:6])
    add_run(tmp_path)
    index(IndexSettings(), root=str(tmp_path), run="run", index="i")
    for path in (tmp_path / "index" / "i").glob("shard-*.parquet"):
        path.write_bytes(table_to_bytes(pq.read_table(path).drop_columns("teacher")))
    add_videos(tmp_path, IDS[6:], seed=1)
    index(IndexSettings(), root=str(tmp_path), run="run", index="i")
    compact(str(tmp_path))
    shards = [pq.read_table(path) for path in (tmp_path / "index" / "i").glob("shard-*.parquet")]
    rows = pa.concat_tables([shard for shard in shards if "teacher" in shard.schema.names])
    assert sorted(rows["video_id"].unique().to_pylist()) == IDS
    assert rows.schema.names == schema.INDEX.names


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "either a run's student, --run RUN, or the teacher alone"),
        ({"run": "run", "teacher": True}, "either a run's student"),
        ({"run": "run", "features": "default"}, "either a run's student"),
        ({"teacher": True, "features": "none"}, "no spec.json"),
    ],
)
def test_what_is_to_be_indexed_must_be_clear(tmp_path, given, match):
    add_videos(tmp_path, IDS[:2])
    with pytest.raises(ValueError, match=match):
        index(SETTINGS, root=str(tmp_path), index="i", **given)


def test_features_without_a_teacher_are_refused(tmp_path):
    spec = {"student": SPEC["student"], "teacher": {"name": "none"}, "shared": False}
    add_videos(tmp_path, IDS[:2], spec=spec)
    with pytest.raises(ValueError, match="holds no vectors of a teacher"):
        add_index(tmp_path)


def test_an_index_of_the_teacher_does_not_become_a_students(tmp_path, indexed_here):
    add_videos(tmp_path, IDS[:2])
    add_run(tmp_path)
    add_index(tmp_path)
    with pytest.raises(ValueError, match="made_by"):
        index(SETTINGS, root=str(tmp_path), run="run", index="i")


def test_through_ray_it_holds_every_frame(tmp_path, local_ray):
    add_videos(tmp_path, IDS)
    counts = add_index(tmp_path)
    assert counts["videos"] == 20
    assert counts["windows"] == sum(map(len, windows_of(tmp_path).values()))

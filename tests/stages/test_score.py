"""The score job against a float64 brute force over the index's rows; killed, resumed, and with shards lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from served import HIDDEN_DIM, add_queries, add_run, add_videos

from prvr_ray.collection import existing_collection, open_collection
from prvr_ray.config import IndexSettings, ScoreSettings
from prvr_ray.maintenance import remove
from prvr_ray.schema import unpack_times, unpack_vectors
from prvr_ray.stages.index import index
from prvr_ray.stages.index_folder import IndexFolder
from prvr_ray.stages.score import Scorer, score
from prvr_ray.stages.score_plan import begin_job, find_questions, plan_job
from prvr_ray.student.batching import normalize

CUT = IndexSettings(windowing="windows", overlap_frames=2, shard_bytes=6000, pass_frames=64)
SETTINGS = ScoreSettings(top_k=7, num_moments=3, unit_bytes=20_000, num_scorers=1)
WEIGHTS = {"inheritance": 0.7, "exploration": 0.3}


@pytest.fixture(scope="module")
def world(tmp_path_factory, local_ray):
    """A root with 60 videos cut into windows, 25 queries and an index of many shards; and its student."""
    root = tmp_path_factory.mktemp("root")
    add_videos(root, [f"v{i:02d}" for i in range(60)])
    add_queries(root, {f"q{i:02d}": [f"v{i:02d}"] for i in range(25)})
    student = add_run(root)
    index(CUT, root=str(root), run="run", index="i")
    return root, student


def answers(root, name="job"):
    """query_id -> its rows, in the order of the files."""
    found = defaultdict(list)
    for path in sorted((Path(root) / "scores" / name).glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found[row["query_id"]].append(row)
    return dict(found)


def windows_of(root):
    """(video_id, branch -> frames, edges) of every row of the index's files, read plainly."""
    for path in sorted((Path(root) / "index" / "i").glob("shard-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            vectors = {b: unpack_vectors(row[b], HIDDEN_DIM).astype(np.float64) for b in WEIGHTS}
            yield row["video_id"], vectors, unpack_times(row["edges_s"])


def query_vectors(root, student):
    """query_id -> branch -> unit vector."""
    features = open_collection(str(root)).features()
    found = {}
    for query in features.read_queries(features.queries()):
        tokens = torch.from_numpy(normalize(query.tokens[:5]))[None]
        encoded = student.encode_queries(tokens, torch.ones(tokens.shape[:2]))
        units = {b: torch.nn.functional.normalize(x[0], dim=0).detach() for b, x in encoded.items()}
        found[query.query_id] = {b: x.double().numpy() for b, x in units.items()}
    return found


def expected_answers(root, student, k):
    """query_id -> [(score, video_id, branch scores, edges of the peak)], best first."""
    found = {}
    windows = list(windows_of(root))
    for query_id, vectors in query_vectors(root, student).items():
        best = {}
        for video_id, frames, edges in windows:
            curves = {b: frames[b] @ vectors[b] for b in WEIGHTS}
            parts = {b: curve.max() for b, curve in curves.items()}
            fused = sum(WEIGHTS[b] * curves[b] for b in WEIGHTS)
            peak = edges[fused.argmax() : fused.argmax() + 2]
            value = sum(WEIGHTS[b] * parts[b] for b in WEIGHTS)
            if video_id not in best or value > best[video_id][0]:
                best[video_id] = (value, video_id, parts, peak)
        found[query_id] = sorted(best.values(), key=lambda item: (-item[0], item[1]))[:k]
    return found


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_answers_equal_a_brute_force_over_windows_in_many_shards_and_units(world, mode):
    root, student = world
    summary = score(
        SETTINGS.model_copy(update={"mode": mode}), root=str(root), index="i", queries="test", output=f"job-{mode}"
    )
    assert summary["units"] > 3
    assert summary["units_scored"] == summary["units"]
    found = answers(root, f"job-{mode}")
    expected = expected_answers(root, student, 7)
    assert list(found) == sorted(expected)
    for query_id, rows in found.items():
        assert [row["rank"] for row in rows] == list(range(1, 8))
        assert [row["video_id"] for row in rows] == [video_id for _, video_id, _, _ in expected[query_id]]
        for row, (value, _, parts, peak) in zip(rows, expected[query_id], strict=True):
            assert row["score"] == pytest.approx(value, abs=2e-6)
            assert row["inheritance_score"] == pytest.approx(parts["inheritance"], abs=2e-6)
            assert row["exploration_score"] == pytest.approx(parts["exploration"], abs=2e-6)
            if row["rank"] <= 3:
                assert row["peak_s"] == pytest.approx(peak.mean())
                assert row["start_s"] <= peak[0] < peak[1] <= row["end_s"]
            else:
                assert {row[name] for name in ("peak_s", "start_s", "end_s")} == {None}


def test_fast_answers_are_byte_for_byte_the_exact_ones(world):
    root, _ = world
    for mode in ("exact", "fast"):
        again = score(SETTINGS, root=str(root), index="i", queries="test", output=f"job-{mode}")
        assert again["units_scored"] == 0
    (exact,), (fast,) = ([p.read_bytes() for p in (root / f"scores/job-{m}").glob("part-*")] for m in ("exact", "fast"))
    assert exact == fast


def test_another_question_under_the_same_name_is_refused_and_named(world):
    root, _ = world
    with pytest.raises(ValueError, match="top_k is 7 there, 5 here"):
        score(SETTINGS.model_copy(update={"top_k": 5}), root=str(root), index="i", queries="test", output="job-exact")


KILLED = """
import sys
from prvr_ray.config import ScoreSettings
from prvr_ray.stages.index_folder import IndexFolder
from prvr_ray.stages.score import Scorer, score
from prvr_ray.stages.score_plan import begin_job, find_questions, plan_job
score(ScoreSettings(top_k=7, num_moments=3, unit_bytes=1, num_scorers=1), root=sys.argv[1], index="i", queries="test",
      output="killed")
"""


def test_a_killed_job_goes_on_and_ends_byte_for_byte_the_same(world):
    """SIGKILL to the driver and all its workers once some partials stand; those are not made again."""
    root, _ = world
    settings = SETTINGS.model_copy(update={"unit_bytes": 1})
    whole = score(settings, root=str(root), index="i", queries="test", output="whole")
    folder = root / "scores" / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(root)], start_new_session=True)
    deadline = time.monotonic() + 120
    while len(standing := list(folder.glob("partials/*"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("partials/*")}
    assert 0 < len(before) < whole["units"]
    assert not list(folder.glob("part-*"))
    assert len(standing) >= 2
    resumed = score(settings, root=str(root), index="i", queries="test", output="killed")
    assert resumed["units_scored"] == whole["units"] - len(before)
    parts = [sorted((root / "scores" / name).glob("part-*")) for name in ("whole", "killed")]
    assert [path.name for path in parts[0]] == [path.name for path in parts[1]]
    assert [path.read_bytes() for path in parts[0]] == [path.read_bytes() for path in parts[1]]
    assert not list(folder.glob("partials/*"))


@pytest.fixture
def damaged(world, tmp_path):
    """A copy of the world that a test may damage, and its shards."""
    root = tmp_path / "root"
    shutil.copytree(world[0], root, ignore=shutil.ignore_patterns("scores"))
    return root, sorted((root / "index" / "i").glob("shard-*.parquet"))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-50])])
def test_a_lost_or_truncated_shard_is_named_and_refused_or_left_out_on_request(damaged, damage):
    root, shards = damaged
    gone = set(pq.read_table(shards[1], columns=["video_id"])["video_id"].to_pylist())
    damage(shards[1])
    ask = {"root": str(root), "index": "i", "queries": "test", "output": "job"}
    with pytest.raises(ValueError, match=f"{shards[1].name}.*--allow-missing"):
        score(SETTINGS, **ask)
    summary = score(SETTINGS, **ask, allow_missing=True)
    assert shards[1].name in summary["missing"][0]
    assert shards[1].name in json.loads((root / "scores/job/plan.json").read_text())["missing"][0]
    shards[1].unlink(missing_ok=True)
    kept = {video_id for video_id, _, _ in windows_of(root)}
    answered = {row["video_id"] for rows in answers(root).values() for row in rows}
    assert answered <= kept
    assert gone - kept  # or the test would show nothing


def test_a_removed_video_is_in_no_answer(damaged):
    root, _ = damaged
    top = score_here(root, "before")["q03"][0]["video_id"]
    remove(str(root), top)
    assert all(row["video_id"] != top for rows in score_here(root, "after").values() for row in rows)


def test_of_a_changed_video_only_the_new_rows_answer(damaged, local_ray):
    root, _ = damaged
    before = score_here(root, "before", top_k=60)["q00"]
    add_videos(root, ["v05"], seed=99, added_at=9.0)
    index(CUT, root=str(root), run="run", index="i")
    after = score_here(root, "after", top_k=60)["q00"]
    old, new = ({row["video_id"]: row["score"] for row in rows} for rows in (before, after))
    assert {video_id for video_id in old if old[video_id] != new[video_id]} == {"v05"}


def score_here(root, output, **settings):
    """What `score` does, in this process."""
    folder = IndexFolder(existing_collection(str(root)), "i")
    wanted = SETTINGS.model_copy(update=settings)
    rows, queries, _ = find_questions("test", folder, output)
    job = begin_job(wanted, folder, queries, *plan_job(wanted, folder, rows, queries))
    scorer = Scorer(job, queries)
    assert scorer.put_queries(0, rows) is None
    assert {scorer.score(*unit) for unit in job.wanted_units()} == {None}
    assert {scorer.merge(block) for block in job.wanted_blocks()} == {None}
    return answers(root, output)

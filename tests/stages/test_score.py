"""The score job against a float64 brute force over the index's rows, and with shards lost, changed or removed."""

import itertools
import json
import shutil
import threading
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from support.score_world import CUT, SETTINGS, answers, expected_answers, make_world, windows_of
from support.served import add_index, add_videos

from prvr_ray import schema
from prvr_ray.collection import existing_collection
from prvr_ray.collection.maintenance import compact, remove
from prvr_ray.index.index import IndexFolder
from prvr_ray.retrieval.scoring import Search
from prvr_ray.scores.partial import unpack_names
from prvr_ray.scores.plan import begin_job, find_queries, plan_job
from prvr_ray.stages.score import Scorer, score


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("root"))


@pytest.mark.parametrize(("mode", "runs_on"), [("exact", "local_ray"), ("fast", "without_ray")])
def test_answers_equal_a_brute_force_over_windows_in_many_shards_and_units(world, request, mode, runs_on):
    request.getfixturevalue(runs_on)
    root, student = world
    summary = score(
        SETTINGS.model_copy(update={"mode": mode}), root=str(root), index="i", queries="test", output=f"job-{mode}"
    )
    assert summary["units"] > 3
    assert summary["units_scored"] == summary["units"]
    in_units = defaultdict(set)
    plan = json.loads((root / f"scores/job-{mode}/plan.json").read_text())
    for unit, (start, stop) in enumerate(plan["units"]):
        for shard in plan["shards"][start:stop]:
            for video_id in pq.read_table(root / "index/i" / shard["name"])["video_id"].to_pylist():
                in_units[video_id].add(unit)
    assert any(len(units) > 1 for units in in_units.values())  # windows of one video lie in several units
    found = answers(root, f"job-{mode}")
    expected = expected_answers(root, student, 7)
    assert list(found) == sorted(expected)
    assert len({row["score"] for row in found["q00"][:3]}) == 1
    assert [row["video_id"] for row in found["q00"][:3]] == sorted(row["video_id"] for row in found["q00"][:3])
    for query_id, rows in found.items():
        assert [row["rank"] for row in rows] == list(range(1, 8))
        assert [row["video_id"] for row in rows] == [video_id for _, video_id, _, _ in expected[query_id]]
        for row, (value, _, parts, moment) in zip(rows, expected[query_id], strict=True):
            assert row["score"] == pytest.approx(value, abs=2e-6)
            assert row["inheritance_score"] == pytest.approx(parts["inheritance"], abs=2e-6)
            assert row["exploration_score"] == pytest.approx(parts["exploration"], abs=2e-6)
            if row["rank"] <= 3:
                assert (row["peak_s"], row["start_s"], row["end_s"]) == pytest.approx(moment)
            else:
                assert {row[name] for name in ("peak_s", "start_s", "end_s")} == {None}


def test_fast_answers_are_byte_for_byte_the_exact_ones(world, without_ray):
    """The exact ones came through Ray, the fast ones from this process: the same bytes, too."""
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


def planned_here(root, output):
    """A job with its queries, ready to score."""
    folder = IndexFolder(existing_collection(str(root)), "i")
    rows, queries, _ = find_queries("test", folder, output)
    job = begin_job(SETTINGS, folder, queries, *plan_job(SETTINGS, folder, rows, queries))
    Scorer(job, queries, 0).put_queries(0, rows)
    return job, job.read_queries(0)


def test_a_partial_is_a_small_share_of_what_it_was_made_from(world):
    job, vectors = planned_here(world[0], "shares")
    for unit, (start, stop) in enumerate(job.plan["units"][:-1]):
        partial, _ = job.score(unit, vectors)
        num_read = sum(shard["bytes"] for shard in job.plan["shards"][start : stop + 1])  # units are whole shards
        names = unpack_names(safetensors.numpy.load(partial)["names"])
        assert len(partial) < num_read / 8 + len(json.dumps(names)) + 1000  # videos' names, and the object's header


def test_the_next_shard_is_read_while_one_is_multiplied(world, monkeypatch):
    job, vectors = planned_here(world[0], "ahead")
    job.plan["units"] = [(0, len(job.plan["shards"]))]
    begun = [threading.Event() for _ in job.plan["shards"]]
    order = {shard["name"]: place for place, shard in enumerate(job.plan["shards"])}
    load, add, num_added = IndexFolder.load, Search.add, itertools.count()

    def noted(self, shard, *wanted):
        begun[order[shard["name"]]].set()
        return load(self, shard, *wanted)

    def waiting(self, blocks):
        place = next(num_added)
        assert begun[min(place + 1, len(begun) - 1)].wait(timeout=10)  # before this shard's own work has begun
        assert not any(event.is_set() for event in begun[place + 2 :])  # two shards are held, not more
        add(self, blocks)

    monkeypatch.setattr(IndexFolder, "load", noted)
    monkeypatch.setattr(Search, "add", waiting)
    job.score(0, vectors)
    assert next(num_added) == len(begun) > 3


@pytest.fixture
def damaged(world, tmp_path):
    """A copy of the world that a test may damage, and its shards."""
    root = tmp_path / "root"
    shutil.copytree(world[0], root, ignore=shutil.ignore_patterns("scores"))
    return root, sorted((root / "index" / "i").glob("shard-*.parquet"))


def test_queries_of_the_split_without_features_are_counted_and_warned_of(damaged):
    root, _ = damaged
    collection = existing_collection(str(root))
    asked = {"root": str(root), "index": "i", "queries": "test", "output": "some", "dry_run": True}
    before = score(SETTINGS, **asked)
    assert before["queries_without_features"] == 0
    assert "warning" not in before
    new = {"query_id": "new", "text": "a text", "split": "test", "video_ids": [], "moments": []}
    collection.query_shards.append(pa.Table.from_pylist([new], schema.QUERIES))
    after = score(SETTINGS, **asked)
    assert (after["queries"], after["queries_without_features"]) == (before["queries"], 1)
    assert "`prvr ingest` encodes captions" in after["warning"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-50])])
def test_a_shard_that_a_job_has_planned_with_and_that_is_gone_is_refused_or_left_out_on_request(
    damaged, without_ray, damage
):
    root, shards = damaged
    planned_here(root, "job")
    damage(shards[1])
    ask = {"root": str(root), "index": "i", "queries": "test", "output": "job"}
    with pytest.raises(ValueError, match=f"{shards[1].name}.*--allow-missing"):
        score(SETTINGS, **ask)
    summary = score(SETTINGS, **ask, allow_missing=True)
    assert shards[1].name in summary["missing"][0]
    assert json.loads((root / "scores/job/finished.json").read_text())["missing"] == summary["missing"]
    shards[1].unlink(missing_ok=True)
    kept = {video_id for video_id, _, _ in windows_of(root)}
    assert {row["video_id"] for rows in answers(root).values() for row in rows} <= kept


def test_a_shard_that_comes_back_is_scored_after_all(damaged, without_ray):
    root, shards = damaged
    ask = {"root": str(root), "index": "i", "queries": "test", "output": "job"}
    whole = answered(root, "whole")
    job, vectors = planned_here(root, "job")
    away = shards[1].rename(root / "away")
    job = replace(job, allow_missing=True)
    for block, unit in job.pending_units():
        job.put_partial(block, unit, vectors)
    for key, data in job.merge(0):
        job.store.put(key, data)
    assert answers(root, "job") != whole  # and now the job is killed, and the shard restored
    away.rename(shards[1])
    summary = score(SETTINGS, **ask)
    assert summary["missing"] == []
    assert summary["units_scored"] == 1
    assert answers(root, "job") == whole


def answered(root, output, **settings):
    """The answers of a job on the world's own queries."""
    score(SETTINGS.model_copy(update=settings), root=str(root), index="i", queries="test", output=output)
    return answers(root, output)


def test_a_removed_video_is_in_no_answer(damaged, without_ray):
    root, _ = damaged
    top = answered(root, "before")["q03"][0]["video_id"]
    remove(str(root), top)
    assert all(row["video_id"] != top for rows in answered(root, "after").values() for row in rows)


def test_a_finished_job_stays_as_it_is_though_its_shards_are_gone(damaged, without_ray):
    root, shards = damaged
    ask = {"root": str(root), "index": "i", "queries": "test", "output": "job"}
    first, rows = score(SETTINGS, **ask), answers(root, "job")
    remove(str(root), rows["q03"][0]["video_id"])
    compact(str(root))
    for shard in shards:  # as gc does after a day
        shard.unlink(missing_ok=True)
    assert score(SETTINGS, **ask) == first | {"units_scored": 0}
    assert answers(root, "job") == rows


def test_of_a_changed_video_only_the_new_rows_answer(damaged, without_ray):
    root, _ = damaged
    before = answered(root, "before", top_k=62)["q00"]
    add_videos(root, ["v05"], seed=99, added_at=9.0)
    add_index(root, CUT, rows_per_shard=50, prefix="shard-later")
    after = answered(root, "after", top_k=62)["q00"]
    old, new = ({row["video_id"]: row["score"] for row in rows} for rows in (before, after))
    assert {video_id for video_id in old if old[video_id] != new[video_id]} == {"v05"}

"""Answers among the videos that match a filter, against a float64 brute force over the index's rows."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.score_world import SETTINGS, answers, expected_answers, make_world

from prvr_ray import schema
from prvr_ray.collection import open_collection
from prvr_ray.index.index import IndexFolder
from prvr_ray.scores.lookup import open_lookup
from prvr_ray.stages.score import score

FEW = {f"v{n:02d}" for n in range(8)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The world, its student, and metadata: `few` videos, all of whose windows lie in the first shards."""
    root, student = make_world(tmp_path_factory.mktemp("root"))
    collection = open_collection(str(root))
    rows = [
        row | {"metadata": json.dumps({"group": "few" if row["video_id"] in FEW else "many", "size": row["size"]})}
        for row in collection.videos().to_pylist()
    ]
    collection.video_shards.append(pa.Table.from_pylist(rows, schema.VIDEOS))
    return root, student


def ask(root, output, *filters, **others):
    return score(SETTINGS, root=str(root), index="i", queries="test", output=output, filter=filters, **others)


def expected_among(world, video_ids, k):
    return {
        query_id: [(video_id, value) for value, video_id, *_ in rows if video_id in video_ids][:k]
        for query_id, rows in expected_answers(*world, 1000).items()
    }


def check(found, expected):
    for query_id, rows in expected.items():
        assert [row["video_id"] for row in found[query_id]] == [video_id for video_id, _ in rows]
        assert [row["score"] for row in found[query_id]] == pytest.approx([value for _, value in rows], abs=2e-6)


def test_answers_are_exact_among_matching_videos_and_other_shards_are_not_read(world, without_ray, monkeypatch):
    read, load = set(), IndexFolder.load

    def noted(self, shard, *wanted):
        read.add(shard["name"])
        return load(self, shard, *wanted)

    monkeypatch.setattr(IndexFolder, "load", noted)
    ask(world[0], "few", "group = few")
    check(answers(world[0], "few"), expected_among(world, FEW, 7))
    paths = list((world[0] / "index/i").glob("shard-*.parquet"))
    matching = {
        path.name for path in paths if FEW & set(pq.read_table(path, columns=["video_id"])["video_id"].to_pylist())
    }
    assert read == matching
    assert len(matching) < len(paths) / 2


def test_k_is_cut_to_the_videos_that_match(world, without_ray):
    done = ask(world[0], "three", "video_id in (v01, v02, v03)")
    assert done["top_k_cut_to"] == 3
    check(answers(world[0], "three"), expected_among(world, {"v01", "v02", "v03"}, 3))


def test_a_search_answers_as_the_job_does(world):
    lookup = open_lookup(open_collection(str(world[0])), "i", filters=["group = few", "size > 0"])
    found = lookup.best(lookup.embed_stored(["q00", "q03"]), 7)
    for query_id, answered in zip(["q00", "q03"], found, strict=True):
        assert [answer.video_id for answer in answered] == [v for v, _ in expected_among(world, FEW, 7)[query_id]]


def test_a_job_with_another_filter_is_another_job(world, without_ray):
    ask(world[0], "named", "group = few")
    for filters in ((), ("group = many",)):
        for dry_run in (True, False):
            with pytest.raises(ValueError, match="filters is"):
                ask(world[0], "named", *filters, dry_run=dry_run)


def test_a_filter_that_leaves_nothing_to_read_is_refused(world):
    with pytest.raises(ValueError, match="size > 10 leaves 0 of 60 videos"):
        ask(world[0], "none", "size > 10", dry_run=True)
    collection = open_collection(str(world[0]))
    new = {"video_id": "new", "added_at": 1.0, "removed": False, "metadata": '{"group": "new"}'}
    collection.video_shards.append(pa.Table.from_pylist([new], schema.VIDEOS))
    with pytest.raises(ValueError, match="group = new leaves 1 videos, none of them in this index"):
        ask(world[0], "none", "group = new", dry_run=True)

"""The planted world of the benchmarks: seeded, of the stated shape, and written as a collection."""

import numpy as np
import pytest

from benchmarks import planted
from prvr_ray.collection import open_collection

FEW = {"train": 12, "val": 5, "test": 6}


def read(root):
    features = open_collection(str(root)).features()
    videos = {video.video_id: video for video in features.read_videos(features.complete())}
    return videos, {query.query_id: query for query in features.read_queries(features.queries())}


def test_the_same_seed_plants_the_same_world_and_another_one_another(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        planted.plant(str(tmp_path / name), noise=0.8, seed=seed, num_videos=FEW)
    first, second, other = (read(tmp_path / name) for name in "abc")
    assert first[0].keys() == second[0].keys()
    for video_id, video in first[0].items():
        np.testing.assert_array_equal(video.teacher, second[0][video_id].teacher)
        np.testing.assert_array_equal(video.student, second[0][video_id].student)
    assert any(len(video.teacher) != len(other[0][video_id].teacher) for video_id, video in first[0].items())


def test_videos_and_moments_have_the_stated_sizes(tmp_path):
    counts = planted.plant(str(tmp_path), noise=0.8, num_videos=FEW)
    videos, queries = read(tmp_path)
    assert counts == {"videos": 23, "queries": len(queries)}
    assert all(14 <= len(video.teacher) == len(video.student) <= 32 for video in videos.values())
    rows = open_collection(str(tmp_path)).queries().to_pylist()
    per_video = [sum(row["video_ids"] == [video_id] for row in rows) for video_id in videos]
    assert min(per_video) >= 2
    assert max(per_video) <= 5


def test_a_query_resembles_its_moment_more_than_the_rest_of_its_video(tmp_path):
    planted.plant(str(tmp_path), noise=0.4, num_videos=FEW)
    videos, queries = read(tmp_path)
    hits = []
    for row in open_collection(str(tmp_path)).queries().to_pylist():
        (moment,) = row["moments"]
        frames = videos[moment["video_id"]].teacher.astype(float)
        cosines = frames @ queries[row["query_id"]].teacher.astype(float) / np.linalg.norm(frames, axis=1)
        hits.append(int(moment["start_s"]) <= cosines.argmax() < int(moment["end_s"]))
    assert np.mean(hits) > 0.9


def test_a_root_that_holds_something_is_refused(tmp_path):
    planted.plant(str(tmp_path), noise=0.8, num_videos={"train": 1})
    with pytest.raises(ValueError, match="give an empty root"):
        planted.plant(str(tmp_path), noise=0.8, num_videos={"train": 1})

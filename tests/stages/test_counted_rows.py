"""Rows that do not count, found shard by shard, against the rule on all rows at once."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from served import add_videos

from prvr_ray import schema
from prvr_ray.collection import by_shard, existing_collection
from prvr_ray.maintenance import remove
from prvr_ray.stages import counted_rows
from prvr_ray.stages.index_folder import IndexFolder


def put_index(root, seed, num_shards, num_videos):
    """Shards of random rows: versions of one video, windows twice, in one shard or several."""
    rng = np.random.default_rng(seed)
    folder = IndexFolder(existing_collection(str(root)), "i")
    for shard in range(num_shards):
        rows = [
            {
                "video_id": f"v{rng.integers(num_videos):03d}",
                "added_at": float(rng.integers(1, 3)),
                "window": int(rng.integers(3)),
            }
            for _ in range(rng.integers(1, 12))
        ]
        folder.shards.append(pa.Table.from_pylist(rows, schema.INDEX), f"shard-{shard:02d}.parquet")
    return folder


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_videos", [8, 100, 400])
def test_the_plan_keeps_the_rows_of_the_rule(tmp_path, seed, num_videos):
    add_videos(tmp_path, ["v001", "v002", "v003", "another"])
    folder = put_index(tmp_path, seed, 12, num_videos)
    remove(str(tmp_path), "v002")
    kept = dict(by_shard(folder.windows()))
    shards, missing = folder.plan()
    assert missing == []
    assert [shard["name"] for shard in shards] == folder.shards.live()
    for shard in shards:
        expected = np.setdiff1d(np.arange(shard["rows"]), kept.get(shard["name"], np.zeros(0, np.int64)))
        assert shard["skip"] == expected.tolist()
    counted = {(row["video_id"], row["added_at"]): row["windows"] for row in folder.count_windows().to_pylist()}
    windows = folder.windows().to_pylist()
    assert counted == Counter((row["video_id"], row["added_at"]) for row in windows)


def test_videos_whose_hashes_meet_by_chance_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(counted_rows, "_hashes", lambda ids: np.zeros(len(ids), np.int64))
    test_the_plan_keeps_the_rows_of_the_rule(tmp_path, 0, 100)


def test_rows_are_compared_only_where_a_video_stands_in_several_shards(tmp_path, monkeypatch):
    add_videos(tmp_path, ["a"])
    folder = IndexFolder(existing_collection(str(tmp_path)), "i")
    for shard, videos in enumerate(("aab", "ccc", "bd", "ef")):
        rows = [{"video_id": video, "added_at": 1.0, "window": 10 * shard + w} for w, video in enumerate(videos)]
        folder.shards.append(pa.Table.from_pylist(rows, schema.INDEX), f"shard-{shard}.parquet")
    compared = []
    monkeypatch.setattr(
        counted_rows,
        "windows_that_count",
        lambda rows, removed: (
            compared.extend(zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True)) or rows
        ),
    )
    shards, _ = folder.plan()
    assert compared == [("shard-0.parquet", 2), ("shard-2.parquet", 0)]
    assert [shard["skip"] for shard in shards] == [[], [], [], []]

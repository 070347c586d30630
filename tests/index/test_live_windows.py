"""Superseded rows, found shard by shard, against the rule on all rows at once."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from support.served import add_videos

from prvr_ray import schema
from prvr_ray.collection import by_shard, existing_collection, newest_windows
from prvr_ray.index import live_windows
from prvr_ray.index.index import IndexFolder
from prvr_ray.index.live_windows import summarize_shards
from prvr_ray.index.manifest import commit, live_counts

NONE_REMOVED = pa.array([], pa.string())


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


@pytest.mark.parametrize("has_manifest", [False, True])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_videos", [8, 100, 400])
def test_the_plan_skips_what_the_rule_leaves_out(tmp_path, seed, num_videos, has_manifest):
    add_videos(tmp_path, ["another"])
    folder = put_index(tmp_path, seed, 12, num_videos)
    rule = newest_windows(folder.shards, NONE_REMOVED)
    present = {name: len(rows) for name, rows in by_shard(folder.shards.scan(["video_id"]))}
    if has_manifest:
        commit(folder.shards, {})
    shards, missing = folder.plan()
    assert missing == []
    planned = {shard["name"]: set(range(shard["rows"])) - set(shard["skip"]) for shard in shards}
    assert {name: rows for name, rows in planned.items() if rows} == {
        name: set(rows.tolist()) for name, rows in by_shard(rule)
    }
    assert {shard["name"]: shard["rows"] for shard in shards}.items() <= present.items()
    assert set(planned) == set(present) or has_manifest
    counts = live_counts(folder.shards, summarize_shards(folder.shards, folder.shards.present(), {}))
    assert {(row["video_id"], row["added_at"]): row["windows"] for row in counts.to_pylist()} == Counter(
        (row["video_id"], row["added_at"]) for row in rule.to_pylist()
    )
    assert folder.windows().equals(rule)


def test_videos_whose_hashes_meet_by_chance_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(live_windows, "_hash", lambda ids: np.zeros(len(ids), np.int64))
    test_the_plan_skips_what_the_rule_leaves_out(tmp_path, 0, 100, True)


def test_rows_are_compared_only_where_a_video_lies_in_several_shards(tmp_path, monkeypatch):
    add_videos(tmp_path, ["a"])
    folder = IndexFolder(existing_collection(str(tmp_path)), "i")
    for shard, videos in enumerate(("aab", "ccc", "bd", "ef")):
        rows = [{"video_id": video, "added_at": 1.0, "window": 10 * shard + w} for w, video in enumerate(videos)]
        folder.shards.append(pa.Table.from_pylist(rows, schema.INDEX), f"shard-{shard}.parquet")
    compared = []
    monkeypatch.setattr(
        live_windows,
        "live_windows",
        lambda rows, removed: (
            compared.extend(zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True)) or rows
        ),
    )
    shards, _ = folder.plan()
    assert compared == [("shard-0.parquet", 2), ("shard-2.parquet", 0)]
    assert [shard["skip"] for shard in shards] == [[], [], [], []]

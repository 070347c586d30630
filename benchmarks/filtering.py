"""Scoring with a filter against scoring everything: `python benchmarks/filtering.py [--quick]`.

The filter keeps the videos of two shards of twenty, once whole shards and once a tenth of each. Both are planned and
scored in this process, reading shards from a local disk; planning the filter, which reads the ids of each shard, is
part of the time. The last line of standard output is one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from score_job import MAX_FRAMES, MIN_FRAMES, World, render

from prvr_ray import schema
from prvr_ray.collection import existing_collection
from prvr_ray.config import ScoreSettings
from prvr_ray.index.index import IndexFolder
from prvr_ray.scores.job import QueryVectors, ScoreJob
from prvr_ray.scores.plan import find_queries, plan_job

NUM_SHARDS, KEPT = 20, 10  # of each ten shards, and of each ten videos of a shard, one is kept


def add_metadata(root: str) -> None:
    """Give each video the number of its shard and its place there, both modulo ten."""
    collection = existing_collection(root)
    ids = IndexFolder(collection, "all").windows()["video_id"].to_pylist()
    rows = []
    for video_id in ids:
        shard, _, name = video_id.partition("/")
        metadata = {"shard": int(shard) % KEPT, "place": int(name.rpartition("-")[2]) % KEPT}
        rows.append({"video_id": video_id, "added_at": 1.0, "removed": False, "metadata": json.dumps(metadata)})
    collection.video_shards.append(pa.Table.from_pylist(rows, schema.VIDEOS))


def score(root: str, vectors: QueryVectors, k: int, filters: tuple[str, ...]) -> tuple[float, int]:
    """Plan and score; return the seconds and the number of shards that were read."""
    begun = time.perf_counter()
    folder = IndexFolder(existing_collection(root), "all")
    settings = ScoreSettings(top_k=k, num_moments=0, mode="exact")
    rows, queries, _ = find_queries("test", folder, "unused")
    spec, plan = plan_job(settings, folder, rows, queries, filters)
    job = ScoreJob(root, "unused", spec, plan, settings.mode)
    for unit in range(len(plan["units"])):
        job.score(unit, vectors)
    return time.perf_counter() - begun, len(plan["shards"])


def measure(root: str, world: World, rounds: int) -> Iterator[tuple[str, float]]:
    _, queries = render(root, world)
    add_metadata(root)
    vectors = QueryVectors(world.query_ids, [(weight, torch.from_numpy(rows_QD)) for weight, rows_QD in queries])
    cases = {"everything": (), "whole_shards": ("shard = 0",), "a_tenth_of_each": ("place = 0",)}
    score(root, vectors, world.k, ())  # warm up
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, filters in cases.items():
            seconds, num_shards = score(root, vectors, world.k, filters)
            times[name].append(seconds)
            yield f"{name}_shards_read", num_shards
    for name, seconds_of in times.items():
        yield f"{name}_s", min(seconds_of)
    for name in ("whole_shards", "a_tenth_of_each"):
        ratios = np.array(times[name]) / np.array(times["everything"])
        yield f"{name}_over_everything", float(np.median(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, as a smoke test")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds; ratios are medians over them")
    arguments = parser.parse_args()
    world = World(NUM_SHARDS, 20 if arguments.quick else 200, (MIN_FRAMES, MAX_FRAMES), 1000, 100)
    with tempfile.TemporaryDirectory() as root:
        figures = dict(measure(root, world, arguments.rounds))
    for name, value in figures.items():
        print(f"{name:32s} {value:12.4f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

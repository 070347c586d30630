"""The whole score job against its kernel: `python benchmarks/score_job.py [--quick | --large-k]`.

The index has two million frames (two branches, clustered vectors) in shards on a local disk. `kernel` is `search`
over the same frames in memory; `job` is all of `prvr score` on embedded Ray except the start of its actors: reading
the index's small columns and shards, finding moments, writing partials, merging them, writing answers. A second index
of a quarter of the shards shows how memory and time scale. If other programs share the cores, processor seconds say
more than wall-clock time. `--large-k` measures instead what 10,000 answers to each of 4,096 queries take. The last
line of standard output is one JSON object.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import safetensors.numpy
from scoring import DIM, MAX_FRAMES, MIN_FRAMES, WEIGHTS, K, clustered_block, queries_near

from prvr_ray import schema
from prvr_ray.collection import Collection, declare_spec, open_collection
from prvr_ray.config import ScoreSettings, resolve
from prvr_ray.index.index import IndexFolder
from prvr_ray.retrieval.scoring import FrameBlock, search
from prvr_ray.runs.run import open_run
from prvr_ray.schema import pack_times, pack_vectors
from prvr_ray.scores.job import query_key
from prvr_ray.scores.partial import pack_names
from prvr_ray.stages import score as stage
from prvr_ray.stages.session import connect
from prvr_ray.storage import put_json
from prvr_ray.student.checkpoints import student_to_bytes
from prvr_ray.student.model import Student

BRANCHES = ("inheritance", "exploration")
STUDENT = "checkpoints/best-00000.safetensors"
TEXT = "a query"
SPEC = {"teacher": {"name": "none", "dim": 1}, "student": {"name": "none", "dim": 1, "token_dim": 1}, "shared": False}

Queries = list[tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Usage:
    """Wall-clock seconds, processor seconds of all processes, and the largest memory of one process in bytes."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class World:
    """Sizes. frames: fewest and most of a video. k: answers per query."""

    num_shards: int
    videos_per_shard: int
    frames: tuple[int, int]
    num_queries: int
    k: int

    @property
    def query_ids(self) -> list[str]:
        return [f"query-{number:04d}" for number in range(self.num_queries)]


def render(root: str, world: World) -> tuple[list[FrameBlock], Queries]:
    """Write a collection with two indexes, `all` and `quarter` (of its shards); return the content of `all`."""
    rng = np.random.default_rng(0)
    collection = _begin_collection(root, world.query_ids)
    whole, quarter = IndexFolder(collection, "all"), IndexFolder(collection, "quarter")
    blocks = []
    for number in range(world.num_shards):
        block = clustered_block(rng, world.videos_per_shard, frames=world.frames)
        ids = [f"{number:02d}/{video_id}" for video_id in block.video_ids]
        blocks.append(FrameBlock(ids, block.branch_offsets[0], block.frames))
        name = whole.shards.append(_index_rows(blocks[-1]))
        if number < world.num_shards // 4:
            os.link(Path(whole.store.uri, name), Path(quarter.store.uri, name))
    share = world.num_queries // world.num_shards + 1
    near = [queries_near(rng, block, share) for block in blocks]
    rows = [np.concatenate([part[branch][1] for part in near])[: world.num_queries] for branch in range(len(WEIGHTS))]
    return blocks, list(zip(WEIGHTS, rows, strict=True))


def _begin_collection(root: str, query_ids: list[str]) -> Collection:
    """Write everything but the indexes' shards. Queries get their vectors in each job, not from these features."""
    collection = open_collection(root)
    video = {"video_id": "any", "added_at": 1.0, "removed": False}
    collection.video_shards.append(pa.Table.from_pylist([video], schema.VIDEOS))
    rows = [{"query_id": query_id, "split": "test", "text": TEXT} for query_id in query_ids]
    collection.query_shards.append(pa.Table.from_pylist(rows, schema.QUERIES))
    features = collection.features()
    declare_spec(features.store, SPEC)
    vector = pack_vectors(np.ones((1, 1)))
    features.query_shards.append(
        pa.Table.from_pylist(
            [
                {"query_id": query_id, "text_hash": schema.text_hash(TEXT), "teacher": vector, "student": vector}
                for query_id in query_ids
            ],
            schema.FEATURE_QUERIES,
        )
    )
    run = open_run(root, "run")
    run.declare(resolve({}), {"features": "default", "shards": {}})
    run.store.put(STUDENT, student_to_bytes(Student(1, 1, hidden_dim=DIM)))
    put_json(run.store, "best.json", {"weights": STUDENT})
    for name in ("all", "quarter"):
        made_of = {"run": "run", "features": "default", **run.best_weights()}
        folder = IndexFolder(collection, name)
        declare_spec(folder.store, {**made_of, "branches": BRANCHES, "dim": DIM})
    return collection


def _index_rows(block: FrameBlock) -> pa.Table:
    lengths_V = np.diff(block.branch_offsets[0])
    columns = {
        "video_id": block.video_ids,
        "etag": [""] * len(lengths_V),
        "added_at": np.ones(len(lengths_V)),
        "window": np.zeros(len(lengths_V), np.int32),
        "num_frames": lengths_V.astype(np.int32),
        "edges_s": [pack_times(np.arange(length + 1)) for length in lengths_V],
        "teacher": pa.nulls(len(lengths_V), pa.large_binary()),
    }
    for branch, rows_RD in zip(BRANCHES, block.frames, strict=True):
        offsets = np.asarray(block.branch_offsets[0] * DIM * 2)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.asarray(rows_RD))]
        columns[branch] = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths_V), buffers)
    return pa.table(columns, schema=schema.INDEX)


def run_kernel(queries: Queries, blocks: list[FrameBlock], k: int) -> Usage:
    """Search the blocks in this process."""
    begun, before = time.perf_counter(), _own_usage()
    search(queries, blocks, k, mode="exact")
    after = _own_usage()
    return Usage(time.perf_counter() - begun, after.cpu_seconds - before.cpu_seconds, after.peak_bytes)


def run_job(root: str, index: str, name: str, world: World, queries: Queries) -> Usage:
    """Score all queries on an index, as `prvr score` does; the start of the actors is not timed."""
    store = open_collection(root).store.child(f"scores/{name}")
    vectors = {branch: rows_QD for branch, (_, rows_QD) in zip(BRANCHES, queries, strict=True)}
    store.put(query_key(0), safetensors.numpy.save({**vectors, "ids": pack_names(world.query_ids)}))
    begun, before = time.perf_counter(), _own_usage()
    with _WatchedActors() as actors:
        stage.score(ScoreSettings(top_k=world.k, mode="exact"), root=root, index=index, queries="test", output=name)
        seconds = time.perf_counter() - begun - actors.start_seconds
        own_cpu = _own_usage().cpu_seconds - before.cpu_seconds
        used = actors.usage()
    return Usage(seconds, own_cpu + sum(item.cpu_seconds for item in used), max(item.peak_bytes for item in used))


class _WatchedActors:
    """Context in which a job waits for its actors before it starts, and keeps them until their usage is known."""

    start_seconds = 0.0

    def __enter__(self) -> "_WatchedActors":
        self._start = stage.start_scorers
        self._scorers: list[Any] = []
        stage.start_scorers = self._started  # type: ignore[assignment]
        return self

    def __exit__(self, *failure: object) -> None:
        stage.start_scorers = self._start
        for scorer in self._scorers:
            ray.kill(scorer)

    def _started(self, *arguments: Any) -> list[Any]:
        begun = time.perf_counter()
        self._scorers = self._start(*arguments)
        self._before = self._asked()
        self.start_seconds = time.perf_counter() - begun
        return self._scorers

    def usage(self) -> list[Usage]:
        """Return the usage of each actor since its start."""
        pairs = zip(self._before, self._asked(), strict=True)
        return [Usage(0.0, after.cpu_seconds - before.cpu_seconds, after.peak_bytes) for before, after in pairs]

    def _asked(self) -> list[Usage]:
        return ray.get([scorer.__ray_call__.remote(_own_usage) for scorer in self._scorers])


def _own_usage(_: object = None) -> Usage:
    found = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(0.0, found.ru_utime + found.ru_stime, found.ru_maxrss * 1024)


def measure(root: str, world: World, rounds: int) -> Iterator[tuple[str, float]]:
    blocks, queries = render(root, world)
    num_frames = sum(int(block.branch_offsets[0][-1]) for block in blocks)
    yield "frames", num_frames
    run_kernel(queries, blocks[:1], world.k)  # warm up: the first products of a process are slow
    kernels, jobs = [], []
    with connect():
        for number in range(rounds):
            kernels.append(run_kernel(queries, blocks, world.k))
            jobs.append(run_job(root, "all", f"all-{number}", world, queries))
        quarter = run_job(root, "quarter", "quarter", world, queries)
    kernel, job = (min(runs, key=lambda run: run.seconds) for runs in (kernels, jobs))
    yield "kernel_s", kernel.seconds
    yield "job_s", job.seconds
    yield "kernel_over_job", kernel.seconds / job.seconds
    yield "kernel_cpu_s", kernel.cpu_seconds
    yield "job_cpu_s", job.cpu_seconds
    yield "kernel_cpu_over_job_cpu", kernel.cpu_seconds / job.cpu_seconds
    yield "job_frames_per_s", num_frames / job.seconds
    parts = list(Path(root, "scores/all-0").glob("part-*"))
    yield "bytes_per_answer", sum(part.stat().st_size for part in parts) / (world.num_queries * world.k)
    yield "quarter_job_s", quarter.seconds
    yield "quarter_job_cpu_s", quarter.cpu_seconds
    yield "actor_peak_gb", job.peak_bytes / 1e9
    yield "quarter_actor_peak_gb", quarter.peak_bytes / 1e9


def measure_large_k(root: str, world: World) -> Iterator[tuple[str, float]]:
    _, queries = render(root, world)
    with connect():
        job = run_job(root, "all", "large-k", world, queries)
    parts = Path(root, "scores/large-k").glob("part-*")
    yield "answers", sum(pq.ParquetFile(part).metadata.num_rows for part in parts)
    yield "job_s", job.seconds
    yield "actor_peak_gb", job.peak_bytes / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, as a smoke test")
    parser.add_argument("--large-k", action="store_true", help="10,000 answers to each of 4,096 queries")
    parser.add_argument(
        "--rounds", type=int, default=2, help="alternating rounds of kernel and job; the best of each is reported"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        if arguments.large_k:
            figures = dict(measure_large_k(root, World(8, 1250, (8, 8), 4096, 10_000)))
        else:
            world = World(24, 113 if arguments.quick else 1130, (MIN_FRAMES, MAX_FRAMES), 1000, K)
            figures = dict(measure(root, world, arguments.rounds))
    for name, value in figures.items():
        print(f"{name:24s} {value:14.4f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""A small collection with features and a run whose student is untrained: enough to index, score and evaluate."""

import numpy as np
import pyarrow as pa
import torch

from prvr_ray import schema
from prvr_ray.collection import declare_spec, open_collection
from prvr_ray.config import resolve
from prvr_ray.index.index import IndexFolder
from prvr_ray.index.live_windows import summarize_shards
from prvr_ray.index.manifest import commit, live_counts
from prvr_ray.index.student_encoder import WindowEncoder, Windowing
from prvr_ray.runs.run import open_run
from prvr_ray.schema import pack_times, pack_vectors
from prvr_ray.stages import index as stage
from prvr_ray.storage import put_json
from prvr_ray.student.checkpoints import student_to_bytes
from prvr_ray.student.model import Student

VIDEO_DIM, TOKEN_DIM, TEACHER_DIM, HIDDEN_DIM, MAX_FRAMES = 20, 12, 10, 16, 8
SPEC = {
    "teacher": {"name": "made-up", "dim": TEACHER_DIM},
    "student": {"name": "made-up", "dim": VIDEO_DIM, "token_dim": TOKEN_DIM},
    "shared": False,
}


def every_second(rng, n):
    return np.arange(n) + 0.5


def unevenly(rng, n):
    """Times of a video of n seconds whose frame rate varies."""
    return np.sort(rng.uniform(0, n, n))


def add_videos(root, ids, seed=0, split="test", num_frames=(3, 30), added_at=1.0, spec=SPEC, times=every_second):
    """Videos of n seconds and frames, in segments of 10 frames; returns video_id -> student features."""
    rng = np.random.default_rng(seed)
    collection = open_collection(str(root))
    features = collection.features()
    declare_spec(features.store, spec)
    videos, segments, made = [], [], {}
    for video_id in ids:
        n = int(rng.integers(*num_frames))
        made[video_id] = student_nD = rng.standard_normal((n, VIDEO_DIM)).astype(np.float16)
        teacher_nD = rng.standard_normal((n, TEACHER_DIM)).astype(np.float16)
        times_n = times(rng, n)
        base = {"video_id": video_id, "etag": f"e{added_at}", "added_at": added_at}
        videos.append(
            {**base, "uri": f"file:///{video_id}", "size": 1, "split": split, "duration_s": float(n), "removed": False}
        )
        for segment, start in enumerate(range(0, n, 10)):
            rows = slice(start, start + 10)
            segments.append(
                {
                    **base,
                    "segment": segment,
                    "is_last": start + 10 >= n,
                    "num_frames": len(student_nD[rows]),
                    "timestamps_s": pack_times(times_n[rows]),
                    "teacher": pack_vectors(teacher_nD[rows]),
                    "student": pack_vectors(student_nD[rows]),
                    "start_s": 0.0,
                    "duration_s": float(n),
                }
            )
    collection.video_shards.append(pa.Table.from_pylist(videos, schema.VIDEOS))
    features.video_shards.append(pa.Table.from_pylist(segments, schema.FEATURE_VIDEOS))
    return made


def add_queries(root, relevant, seed=0, split="test", moments=None):
    """Queries with features; relevant: query_id -> video ids. moments: query_id -> [(video_id, start_s, end_s)]."""
    rng = np.random.default_rng(seed)
    collection = open_collection(str(root))
    rows, vectors = [], []
    for query_id, video_ids in relevant.items():
        own = [dict(zip(("video_id", "start_s", "end_s"), m, strict=True)) for m in (moments or {}).get(query_id, [])]
        rows.append(
            {
                "query_id": query_id,
                "text": f"text of {query_id}",
                "video_ids": video_ids,
                "split": split,
                "moments": own,
            }
        )
        tokens_TD = rng.standard_normal((rng.integers(2, 6), TOKEN_DIM))
        vectors.append(
            {
                "query_id": query_id,
                "text_hash": schema.text_hash(f"text of {query_id}"),
                "num_tokens": len(tokens_TD),
                "teacher": pack_vectors(rng.standard_normal((1, TEACHER_DIM))),
                "student": pack_vectors(tokens_TD),
            }
        )
    collection.query_shards.append(pa.Table.from_pylist(rows, schema.QUERIES))
    collection.features().query_shards.append(pa.Table.from_pylist(vectors, schema.FEATURE_QUERIES))


def add_run(root, name="run", seed=0, branches=("inheritance", "exploration")):
    """A run that has ended an epoch; returns its student."""
    torch.manual_seed(seed)
    student = Student(
        VIDEO_DIM, TOKEN_DIM, hidden_dim=HIDDEN_DIM, num_heads=4, max_frames=MAX_FRAMES, max_tokens=5, branches=branches
    ).eval()
    for parameter in student.parameters():  # at N(0, 0.02) all frames would look the same
        parameter.data.mul_(20) if parameter.ndim > 1 else None
    config = resolve(
        {"student": {"hidden_dim": HIDDEN_DIM, "max_frames": MAX_FRAMES, "max_tokens": 5, "branches": list(branches)}}
    )
    run = open_run(str(root), name)
    run.declare(config, {"features": "default", "shards": {}})
    key = "checkpoints/best-00000.safetensors"
    run.store.put(key, student_to_bytes(student))
    put_json(run.store, "best.json", {"epoch": 0, "fused/sumr": 1.0, "weights": key})
    return student


def add_index(root, settings, rows_per_shard, name="i", prefix="shard-"):
    """What `prvr index` makes of run `run`, without Ray: shards of so many windows each, of what is not there yet."""
    collection, run = open_collection(str(root)), open_run(str(root), "run")
    features, target = collection.features(), IndexFolder(collection, name)
    spec = declare_spec(target.store, stage._index_spec(run, features, settings))
    windowing = Windowing(**spec["windowing"])
    encoder = WindowEncoder(run.load_student(), windowing, settings.pass_frames)
    present = summarize_shards(target.shards, target.shards.present(), {})
    missing = stage._pending(features, live_counts(target.shards, present), windowing)
    rows = pa.concat_tables(encoder.encode(features.read_videos(missing, columns=("student",))))
    for start in range(0, len(rows), rows_per_shard):
        target.shards.append(rows.slice(start, rows_per_shard), f"{prefix}{start:05d}.parquet")
    commit(target.shards, present)

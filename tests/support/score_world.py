"""A world to score, its answers by plain float64 loops over the index's files, and the answers of a job."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from prvr_ray.collection import open_collection
from prvr_ray.config import IndexSettings, ScoreSettings
from prvr_ray.index.index import IndexFolder
from prvr_ray.index.manifest import commit
from prvr_ray.schema import unpack_times, unpack_vectors
from prvr_ray.student.batching import normalize
from support.served import HIDDEN_DIM, add_index, add_queries, add_run, add_videos, unevenly

CUT = IndexSettings(windowing="windows", overlap_frames=2, pass_frames=64)
SETTINGS = ScoreSettings(top_k=7, num_moments=3, unit_bytes=20_000, num_scorers=1)
WEIGHTS = {"inheritance": 0.7, "exploration": 0.3}


def make_world(root):
    """A root with 60 videos of uneven frame rates cut into windows, 25 queries and an index of many shards, where the
    best video for q00 stands three times; and its student."""
    add_videos(root, [f"v{i:02d}" for i in range(60)], times=unevenly)
    add_queries(root, {f"q{i:02d}": [f"v{i:02d}"] for i in range(25)})
    student = add_run(root)
    add_index(root, CUT, rows_per_shard=11)
    plant_twins(root, expected_answers(root, student, 1)["q00"][0][1])
    return root, student


def plant_twins(root, video_id):
    """The same vectors under two more names, in the first shard and in the last."""
    shards = IndexFolder(open_collection(str(root)), "i").shards
    rows = [row for row in shards.scan().select(shards.schema.names).to_pylist() if row["video_id"] == video_id]
    for name, twin in (("shard-", "zebra"), ("shard-z", "aardvark")):
        table = pa.Table.from_pylist([{**row, "video_id": twin} for row in rows], shards.schema)
        shards.append(table, f"{name}.parquet")
    commit(shards, {})


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
    """query_id -> [(score, video_id, branch scores, (peak, start, end) in seconds)], best first."""
    found = {}
    windows = list(windows_of(root))
    for query_id, vectors in query_vectors(root, student).items():
        best = {}
        for video_id, frames, edges in windows:
            curves = {b: frames[b] @ vectors[b] for b in WEIGHTS}
            parts = {b: curve.max() for b, curve in curves.items()}
            fused = sum(WEIGHTS[b] * curves[b] for b in WEIGHTS)
            value = sum(WEIGHTS[b] * parts[b] for b in WEIGHTS)
            if video_id not in best or value > best[video_id][0]:
                best[video_id] = (value, video_id, parts, moment_of(fused, edges))
        found[query_id] = sorted(best.values(), key=lambda item: (-item[0], item[1]))[:k]
    return found


def moment_of(curve, edges):
    """Peak, start and end of the run of frames around the best one that lie above half height over the median."""
    peak = start = stop = int(curve.argmax())
    level = (np.median(curve) + curve.max()) / 2
    while start > 0 and curve[start - 1] >= level:
        start -= 1
    while stop < len(curve) - 1 and curve[stop + 1] >= level:
        stop += 1
    return (edges[peak] + edges[peak + 1]) / 2, edges[start], edges[stop + 1]

"""A small collection whose features can be learnt: a query resembles a frame of its video, in its own feature space,
and the teacher sees both through noise."""

from typing import Any

import numpy as np
import pyarrow as pa

from prvr_ray.collection import declare_spec, open_collection
from prvr_ray.schema import pack_times, pack_vectors, text_hash

SPLITS = {"train": 40, "val": 16, "test": 16}
DIMS = {"video": 12, "token": 10, "teacher": 8}
_SPEC = {
    "teacher": {"name": "planted", "dim": DIMS["teacher"]},
    "student": {"name": "planted", "dim": DIMS["video"], "token_dim": DIMS["token"]},
    "shared": False,
}


def plant(root: str, seed: int = 0, splits: dict[str, int] = SPLITS, noise: float = 0.8) -> None:
    """Write videos of 3 to 12 frames, two queries each, and features of them all."""
    rng = np.random.default_rng(seed)
    projections = {name: rng.normal(size=(6, dim)) for name, dim in DIMS.items()}
    collection = open_collection(root)
    features = collection.features()
    declare_spec(features.store, _SPEC)
    rows: dict[str, list[dict[str, Any]]] = {"videos": [], "segments": [], "queries": [], "encoded": []}
    for split, count in splits.items():
        for number in range(count):
            _plant_video(rows, f"{split}-{number}", split, projections, rng, noise)
    for folder, name in (
        (collection.video_shards, "videos"),
        (collection.query_shards, "queries"),
        (features.video_shards, "segments"),
        (features.query_shards, "encoded"),
    ):
        folder.append(pa.Table.from_pylist(rows[name], folder.schema))


def _plant_video(
    rows: dict[str, list[dict[str, Any]]],
    video_id: str,
    split: str,
    projections: dict[str, np.ndarray],
    rng: np.random.Generator,
    noise: float,
) -> None:
    meaning_FD = rng.normal(size=(int(rng.integers(3, 13)), 6))
    num_frames = len(meaning_FD)

    def seen(meaning_nD: np.ndarray, by: str) -> bytes:
        x_nD = meaning_nD @ projections[by]
        return pack_vectors(x_nD + (noise if by == "teacher" else 0.1) * rng.normal(size=x_nD.shape))

    source = {"video_id": video_id, "etag": "e", "added_at": 1.0, "duration_s": float(num_frames)}
    rows["videos"].append({**source, "uri": video_id, "size": 1, "split": split, "removed": False})
    rows["segments"].append(
        {
            **source,
            "segment": 0,
            "is_last": True,
            "num_frames": num_frames,
            "timestamps_s": pack_times(np.arange(num_frames)),
            "teacher": seen(meaning_FD, "teacher"),
            "student": seen(meaning_FD, "video"),
        }
    )
    for number in range(2):
        moment_1D = meaning_FD[rng.integers(num_frames)][None]
        query = {"query_id": f"{video_id}#{number}", "text": f"{number} of {video_id}", "split": split}
        rows["queries"].append({**query, "video_ids": [video_id], "moments": []})
        rows["encoded"].append(
            {
                "query_id": query["query_id"],
                "text_hash": text_hash(query["text"]),
                "num_tokens": 2,
                "teacher": seen(moment_1D, "teacher"),
                "student": seen(np.repeat(moment_1D, 2, axis=0), "token"),
            }
        )

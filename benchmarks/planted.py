"""A planted world: a collection with known ground truth, in which student and teacher see different things.

The content of a frame is a point in a latent space of 40 dimensions. The teacher sees 20 of them; the student's inputs
are a random projection of all of them; each view of each frame and caption has its own noise. Neither can therefore
replace the other, and a mixture of both is better than either. The world is written as an ordinary collection, so
`prvr train`, `index`, `evaluate` and `score` work on it as on any other.

    python benchmarks/planted.py --root ROOT [--noise low|middle|high] [--seed 0] [--scale 1.0]
"""

import argparse
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prvr_ray.collection import declare_spec, existing_collection, open_collection
from prvr_ray.collection.shards import ShardFolder
from prvr_ray.schema import pack_times, pack_vectors, text_hash

NUM_VIDEOS = {"train": 2000, "val": 300, "test": 500}
NOISE = {"low": 0.7, "middle": 0.8, "high": 0.9}  # standard deviation; that of each latent dimension is 1
LATENT_DIM, TEACHER_DIM, VIDEO_DIM, TOKEN_DIM = 40, 20, 64, 48
_FRAMES, _MOMENTS, _MOMENT_FRAMES, _TOKENS = (14, 32), (2, 5), (1, 2), 4
_SPEC = {
    "teacher": {"name": "planted", "dim": TEACHER_DIM},
    "student": {"name": "planted", "dim": VIDEO_DIM, "token_dim": TOKEN_DIM},
    "shared": False,
}

Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class View:
    """How one kind of vector shows the latent space: a projection, and noise added to it before."""

    projection: np.ndarray
    noise: float

    def of(self, latent_ND: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noisy_ND = latent_ND + self.noise * rng.standard_normal(latent_ND.shape)
        return noisy_ND @ self.projection


def plant(root: str, *, noise: float, seed: int = 0, num_videos: dict[str, int] | None = None) -> dict[str, int]:
    """Write the world below an empty root.

    Args:
        noise: standard deviation of what is added to each latent dimension, anew for every frame and caption.
        seed: of everything.
        num_videos: of each split; None: NUM_VIDEOS.

    Returns:
        Counts of videos and queries.

    Raises:
        ValueError: the root holds a collection.
    """
    collection = open_collection(root)
    if _holds_something(root):
        raise ValueError(f"{collection.store.uri} holds a collection; give an empty root")
    rng = np.random.default_rng(seed)
    views = _views(rng, noise)
    features = collection.features()
    declare_spec(features.store, _SPEC)
    rows: Rows = {"videos": [], "segments": [], "queries": [], "encoded": []}
    for split, count in (num_videos or NUM_VIDEOS).items():
        for number in range(count):
            _plant_video(rows, f"{split}-{number:04d}", split, views, rng)
    folders: dict[str, ShardFolder] = {
        "videos": collection.video_shards,
        "queries": collection.query_shards,
        "segments": features.video_shards,
        "encoded": features.query_shards,
    }
    for name, folder in folders.items():
        folder.append(pa.Table.from_pylist(rows[name], folder.schema))
    return {"videos": len(rows["videos"]), "queries": len(rows["queries"])}


def _holds_something(root: str) -> bool:
    try:
        existing_collection(root)
    except ValueError:
        return False
    return True


def _views(rng: np.random.Generator, noise: float) -> dict[str, View]:
    half = np.eye(LATENT_DIM)[:, :TEACHER_DIM]
    return {
        "teacher": View(half, noise),
        "video": View(rng.standard_normal((LATENT_DIM, VIDEO_DIM)), noise),
        "token": View(rng.standard_normal((LATENT_DIM, TOKEN_DIM)), noise),
    }


def _plant_video(rows: Rows, video_id: str, split: str, views: dict[str, View], rng: np.random.Generator) -> None:
    num_frames = int(rng.integers(_FRAMES[0], _FRAMES[1] + 1))
    latent_FD = rng.standard_normal((num_frames, LATENT_DIM))
    spans = _spans(num_frames, rng)
    for start, stop in spans:
        latent_FD[start:stop] = latent_FD[start]
    source = {"video_id": video_id, "etag": "planted", "added_at": 1.0, "duration_s": float(num_frames)}
    rows["videos"].append({**source, "uri": video_id, "size": 1, "split": split, "removed": False})
    rows["segments"].append(
        {
            **source,
            "segment": 0,
            "is_last": True,
            "num_frames": num_frames,
            "timestamps_s": pack_times(np.arange(num_frames) + 0.5),
            "teacher": pack_vectors(views["teacher"].of(latent_FD, rng)),
            "student": pack_vectors(views["video"].of(latent_FD, rng)),
        }
    )
    for number, (start, stop) in enumerate(spans):
        _plant_query(rows, f"{video_id}#{number}", video_id, split, (start, stop), latent_FD[start], views, rng)


def _spans(num_frames: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Frames [start, stop) of the moments that are captioned; none touches another."""
    num_moments = int(rng.integers(_MOMENTS[0], _MOMENTS[1] + 1))
    room = np.linspace(0, num_frames, num_moments + 1).astype(int)[:-1]
    lengths = rng.integers(_MOMENT_FRAMES[0], _MOMENT_FRAMES[1] + 1, num_moments)
    return [(int(start), int(start + length)) for start, length in zip(room, lengths, strict=True)]


def _plant_query(
    rows: Rows,
    query_id: str,
    video_id: str,
    split: str,
    span: tuple[int, int],
    latent_D: np.ndarray,
    views: dict[str, View],
    rng: np.random.Generator,
) -> None:
    text = f"moment {query_id.rpartition('#')[2]} of {video_id}"
    moment = {"video_id": video_id, "start_s": float(span[0]), "end_s": float(span[1])}
    rows["queries"].append(
        {"query_id": query_id, "text": text, "video_ids": [video_id], "split": split, "moments": [moment]}
    )
    tokens_TD = np.repeat(
        views["token"].of(latent_D[None], rng), _TOKENS, axis=0
    )  # repeated, so averaging over tokens does not remove the noise
    rows["encoded"].append(
        {
            "query_id": query_id,
            "text_hash": text_hash(text),
            "num_tokens": _TOKENS,
            "teacher": pack_vectors(views["teacher"].of(latent_D[None], rng)),
            "student": pack_vectors(tokens_TD),
        }
    )


def main() -> None:
    """Plant a world, and print what was planted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="an empty folder")
    parser.add_argument("--noise", choices=sorted(NOISE), default="middle", help="of every vector")
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of videos")
    args = parser.parse_args()
    num_videos = {split: max(1, round(count * args.scale)) for split, count in NUM_VIDEOS.items()}
    print(json.dumps(plant(args.root, noise=NOISE[args.noise], seed=args.seed, num_videos=num_videos)))


if __name__ == "__main__":
    main()

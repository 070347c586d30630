"""A small made-up split that can be learnt: a query resembles a frame of its video, in its own feature space."""

from pathlib import Path

import numpy as np

from prvr_ray.config import StudentSettings, TrainSettings
from prvr_ray.student.batching import align
from prvr_ray.student.cache import FeatureCache, QueryRows, VideoRows, read_cache, write_cache

STUDENT = StudentSettings(hidden_dim=16, num_heads=4, max_frames=10, max_tokens=6)
TRAIN = TrainSettings(num_epochs=3, videos_per_batch=4, lr=2e-3, hard_pool_size=2)
QUIET = TRAIN.model_copy(update={"dropout": 0.0, "input_dropout": 0.0})
VIDEO_DIM, QUERY_DIM, TEACHER_DIM = 12, 10, 8


def make_split(folder: Path, num_videos: int, seed: int = 0, max_queries: int = 4) -> FeatureCache:
    """Videos of 3 to 13 frames with one to max_queries queries of 1 to 5 tokens."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(12345)
    to_video, to_token, to_teacher = (world.normal(size=(6, dim)) for dim in (VIDEO_DIM, QUERY_DIM, TEACHER_DIM))
    videos, queries = [], []
    for v in range(num_videos):
        meaning_FD = rng.normal(size=(int(rng.integers(3, 14)), 6))
        teacher_FD = meaning_FD @ to_teacher + rng.normal(size=(len(meaning_FD), TEACHER_DIM))
        videos.append(VideoRows(f"v{v:03d}", *align(meaning_FD @ to_video, teacher_FD, STUDENT.max_frames)))
        for k in range(int(rng.integers(1, max_queries + 1))):
            moment_D = meaning_FD[rng.integers(len(meaning_FD))]
            tokens_TD = moment_D @ to_token + 0.3 * rng.normal(size=(int(rng.integers(1, 6)), QUERY_DIM))
            queries.append(QueryRows(f"v{v:03d}#{k}", [f"v{v:03d}"], tokens_TD, moment_D @ to_teacher))
    folder.mkdir()
    write_cache(folder, videos, queries)
    return read_cache(folder)

"""Random corpora for the scoring tests, and the float64 brute force that they are held against."""

import numpy as np

from prvr_ray.retrieval.scoring import FrameBlock


def unit_rows(rng, shape, dtype=np.float32):
    rows = rng.standard_normal(shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(dtype)


def ragged_world(rng, num_windows, num_videos, dims, max_frames=40, dtype=np.float16):
    """Windows as (video_id, [frames of each branch]); branches have their own frame counts."""
    videos = [f"v{v:04d}" for v in rng.permutation(num_videos)]
    owners = [*videos, *rng.choice(videos, size=num_windows - num_videos)] if num_videos < num_windows else videos
    return [(owner, [unit_rows(rng, (rng.integers(1, max_frames), dim), dtype) for dim in dims]) for owner in owners]


def as_blocks(world, sizes):
    """Cut windows into blocks of the given numbers of windows, again and again."""
    blocks, start, turn = [], 0, 0
    while start < len(world):
        part = world[start : start + sizes[turn % len(sizes)]]
        frames = [np.concatenate([rows[b] for _, rows in part]) for b in range(len(part[0][1]))]
        offsets = [np.cumsum([0, *(len(rows[b]) for _, rows in part)]) for b in range(len(frames))]
        blocks.append(FrameBlock([owner for owner, _ in part], offsets, frames))
        start, turn = start + len(part), turn + 1
    return blocks


def brute_force_scores(queries, world):
    """Video ids in order, and (Q, V) float64: fuse per window, then the maximum over a video's windows."""
    video_ids = sorted({owner for owner, _ in world})
    scores_QV = np.full((len(queries[0][1]), len(video_ids)), -np.inf)
    for owner, rows in world:
        window_Q = sum(
            weight * (q_QD.astype(np.float64) @ rows_FD.T.astype(np.float64)).max(1)
            for (weight, q_QD), rows_FD in zip(queries, rows, strict=True)
        )
        column = video_ids.index(owner)
        scores_QV[:, column] = np.maximum(scores_QV[:, column], window_Q)
    return video_ids, scores_QV


def assert_equals_brute_force(top, queries, world, k, tolerance=2e-6):
    """Same scores; same ids wherever the true scores differ by more than the tolerance; true ties by video_id."""
    video_ids, true_QV = brute_force_scores(queries, world)
    found = min(k, len(video_ids))
    for query, ids in enumerate(top.video_ids):
        assert len(ids) == len(set(ids)) == found
        order = sorted(range(len(video_ids)), key=lambda v: (-true_QV[query, v], video_ids[v]))[:found]
        expected = true_QV[query, order]
        chosen = true_QV[query, [video_ids.index(video_id) for video_id in ids]]
        np.testing.assert_allclose(top.scores[query, :found], expected, atol=tolerance, rtol=0)
        np.testing.assert_allclose(chosen, expected, atol=tolerance, rtol=0)
        for place, video in enumerate(order):
            is_alone = (np.abs(np.delete(true_QV[query], video) - true_QV[query, video]) > tolerance).all()
            if is_alone:
                assert ids[place] == video_ids[video]
    assert np.isneginf(top.scores[:, found:]).all()

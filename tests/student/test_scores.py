import pytest
import torch
from torch.nn import functional as F

from prvr_ray.student.model import Layout
from prvr_ray.student.scores import OwnFrames, max_cosines, score


def _world(num_queries: int, lengths: list[int], dim: int = 6, seed: int = 0):
    torch.manual_seed(seed)
    queries = torch.randn(num_queries, dim, dtype=torch.float64, requires_grad=True)
    frames = torch.randn(sum(lengths), dim, dtype=torch.float64, requires_grad=True)
    return queries, frames, Layout.from_lengths(torch.tensor(lengths, dtype=torch.int64))


def _one_by_one(queries, frames, lengths, video_of_query):
    """The same scores, one video at a time, all differentiable."""
    videos = frames.split(lengths)
    cosines = [F.normalize(queries, dim=1) @ F.normalize(video, dim=1).T for video in videos]
    dots = [queries @ video.T for video in videos]
    own = torch.cat([cosines[v][q] for q, v in enumerate(video_of_query)])
    return torch.stack([c.amax(1) for c in cosines], 1), torch.stack([d.amax(1) for d in dots], 1), own


@pytest.mark.parametrize("queries_per_tile", [512, 3, 1])
def test_scores_and_gradients_equal_those_of_one_video_at_a_time(queries_per_tile):
    lengths, video_of_query = [3, 1, 5, 2], [0, 0, 1, 2, 2, 2, 3]
    queries, frames, layout = _world(7, lengths)
    own = OwnFrames.of(torch.tensor(video_of_query), layout)
    got = score(queries, frames, layout, own, queries_per_tile)
    ours = (got.cosine_NV, got.dot_NV, got.own_cosine_K)
    expected = _one_by_one(queries, frames, lengths, video_of_query)
    weights = [torch.randn_like(x) for x in expected]
    gradients = [
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(scores, weights, strict=True)), (queries, frames))
        for scores in (ours, expected)
    ]
    for a, b in zip(ours + gradients[0], expected + gradients[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_best_frames_of_cosine_and_dot_may_differ():
    queries = torch.tensor([[1.0, 0.0]])
    frames = torch.tensor([[5.0, 5.0], [1.0, 0.0]])
    got = score(queries, frames, Layout.from_lengths(torch.tensor([2])))
    assert (got.cosine_NV.item(), got.dot_NV.item()) == (pytest.approx(1.0), pytest.approx(5.0))


def test_no_videos_and_queries_of_absent_videos():
    queries, frames, layout = _world(3, [])
    own = OwnFrames.of(torch.tensor([-1, -1, -1]), layout)
    got = score(queries, frames, layout, own)
    assert got.cosine_NV.shape == (3, 0)
    assert got.own_cosine_K.shape == (0,)
    (got.cosine_NV.sum() + got.dot_NV.sum()).backward()
    assert (queries.grad == 0).all()


def test_a_nan_frame_shows_in_both_scores():
    queries, frames, layout = _world(2, [2, 2])
    with torch.no_grad():
        frames[3, 0] = torch.nan
    got = score(queries, frames, layout)
    assert got.cosine_NV[:, 1].isnan().all()
    assert got.dot_NV[:, 1].isnan().all()
    assert got.dot_NV[:, 0].isfinite().all()


def test_max_cosines_in_tiles_equal_the_differentiable_ones():
    queries, frames, layout = _world(7, [3, 1, 5, 2])
    expected = score(queries, frames, layout).cosine_NV
    torch.testing.assert_close(max_cosines(queries, frames, layout, queries_per_tile=3), expected)

"""The warning about a student: what it needs before it is silent."""

import numpy as np
import pytest

from prvr_ray.evaluation.verdict import compare, sumr_of_queries, warn_of_student


def ranks_of(hits, worst=200):
    """Rank 1 for a hit, far behind for a miss."""
    return [np.array([1 if hit else worst]) for hit in hits]


def test_sumr_of_each_query_by_hand():
    values = sumr_of_queries([np.array([1]), np.array([7]), np.array([101]), np.array([1, 30])])
    np.testing.assert_allclose(values, [400, 200, 0, 100 + 50 + 50 + 100])


def test_a_clear_gain_on_many_videos_is_silent_and_a_clear_loss_is_said():
    videos = [f"v{i // 2}" for i in range(200)]
    good, bad = ranks_of([True] * 150 + [False] * 50), ranks_of([True] * 40 + [False] * 160)
    assert warn_of_student(compare(good, bad, videos), "val") == ""
    said = warn_of_student(compare(bad, good, videos), "val")
    assert "below its teacher on the val split" in said
    assert "SumR -220.0" in said
    assert "100 videos" in said


def test_a_gain_that_a_single_video_carries_is_not_believed():
    """60 queries, all gains about one video: resampled by query the interval would lie far above 0."""
    videos = ["one"] * 20 + [f"v{i}" for i in range(40)]
    rng = np.random.default_rng(0)
    others = rng.random(40) < 0.5
    teacher = ranks_of([False] * 20 + others.tolist())
    student = ranks_of([True] * 20 + others[::-1].tolist())
    comparison = compare(student, teacher, videos)
    assert comparison.mean > 0
    assert "not shown to be better" in warn_of_student(comparison, "val")


@pytest.mark.parametrize("num_queries", [1, 29])
def test_below_thirty_queries_it_cannot_tell_whatever_they_show(num_queries):
    videos = [f"v{i}" for i in range(num_queries)]
    comparison = compare(ranks_of([True] * num_queries), ranks_of([False] * num_queries), videos)
    assert not comparison.is_gain
    assert f"has {num_queries} queries about {num_queries} videos: too few to tell" in warn_of_student(
        comparison, "val"
    )

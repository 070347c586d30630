"""Bootstrap intervals: what they must agree with that is known without them."""

import numpy as np
import pytest

from prvr_ray.evaluation.intervals import bootstrap


def test_one_query_a_cluster_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(0)
    values_QM = (rng.random((2000, 1)) < 0.3).astype(float)
    low, high = bootstrap(values_QM, [str(q) for q in range(2000)], num_resamples=4000, confidence=0.95, seed=1)[:, 0]
    mean = values_QM.mean()
    half = 1.96 * np.sqrt(mean * (1 - mean) / 2000)
    assert low == pytest.approx(mean - half, abs=0.002)
    assert high == pytest.approx(mean + half, abs=0.002)


def test_resampling_by_hand_in_a_loop_gives_the_same_interval():
    rng = np.random.default_rng(2)
    clusters = rng.integers(0, 12, 80)
    values_Q = rng.normal(size=80) + clusters
    by_cluster = [values_Q[clusters == c] for c in np.unique(clusters)]
    means = []
    for _ in range(6000):
        drawn = [by_cluster[c] for c in rng.integers(0, len(by_cluster), len(by_cluster))]
        means.append(np.concatenate(drawn).mean())
    expected = np.quantile(means, [0.05, 0.95])
    ends = bootstrap(values_Q[:, None], clusters.astype(str), num_resamples=6000, confidence=0.9, seed=3)[:, 0]
    np.testing.assert_allclose(ends, expected, atol=0.15)


def test_queries_of_one_video_are_not_taken_for_independent():
    values_QM = np.repeat([[0.0], [1.0]], 50, axis=0).repeat(2, axis=0)
    apart = bootstrap(values_QM, [str(q) for q in range(200)], num_resamples=500, confidence=0.95, seed=0)
    together = bootstrap(values_QM, ["a"] * 100 + ["b"] * 100, num_resamples=500, confidence=0.95, seed=0)
    assert np.ptp(together) > 3 * np.ptp(apart)


def test_a_single_cluster_and_equal_values_give_a_point():
    ends = bootstrap(np.array([[2.0], [4.0]]), ["a", "a"], num_resamples=50, confidence=0.95, seed=0)
    np.testing.assert_array_equal(ends, [[3.0], [3.0]])

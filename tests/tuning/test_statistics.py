"""Means, spreads and paired intervals against figures worked out by hand."""

import math
import random

import numpy as np
import pytest
from support.proofs import freedom_by_hand, t_975

from prvr_ray.tuning.statistics import Spread, compare_pairs, compare_queries, measure_spread

# Differences by hand: 2, 3, 1, 2 -> mean 2, sd sqrt(2/3) = 0.8164966, error 0.4082483; t(0.975, 3) = 3.182446 from a
# printed table: half width 1.299228.
BASE = {0: 100.0, 1: 104.0, 2: 98.0, 3: 102.0}
BETTER = {0: 102.0, 1: 107.0, 2: 99.0, 3: 104.0}


def test_mean_and_sample_standard_deviation() -> None:
    assert measure_spread([1.0, 2.0, 4.0]) == Spread(3, pytest.approx(7 / 3), pytest.approx(1.5275252))
    assert measure_spread([5.0]) == Spread(1, 5.0, None)
    assert measure_spread([]) is None


def test_paired_interval_equals_the_hand_computation() -> None:
    found = compare_pairs(BETTER, BASE, 0.95)
    assert found is not None
    assert (found.count, found.mean) == (4, pytest.approx(2.0))
    assert found.low == pytest.approx(2.0 - 1.299228, abs=1e-5)
    assert found.high == pytest.approx(2.0 + 1.299228, abs=1e-5)
    assert found.is_gain


def test_only_seeds_that_both_have_are_paired() -> None:
    found = compare_pairs({0: 102.0, 1: 107.0, 7: 999.0}, {**BASE, 9: -999.0}, 0.95)
    assert found is not None
    # 2 and 3: mean 2.5, sd 0.7071068, error 0.5, t(0.975, 1) = 12.7062: half width 6.3531
    assert (found.count, found.mean) == (2, pytest.approx(2.5))
    assert found.low == pytest.approx(2.5 - 6.3531, abs=1e-3)
    assert not found.is_gain


def test_one_pair_has_no_interval_and_proves_nothing() -> None:
    found = compare_pairs({0: 110.0}, {0: 100.0}, 0.95)
    assert found is not None
    assert (found.mean, found.low, found.high, found.is_gain) == (10.0, None, None, False)
    assert compare_pairs({1: 3.0}, {0: 1.0}, 0.95) is None


def test_equal_runs_are_no_gain() -> None:
    found = compare_pairs(BASE, BASE, 0.95)
    assert found is not None
    assert (found.mean, found.low, found.high, found.is_gain) == (0.0, 0.0, 0.0, False)


def interval_by_loops(difference, clusters, t: float, num_draws: int = 3000):
    """Seeds and videos drawn one by one; the seeds' part of the variance is unbiased, as in Student's t."""
    chance, (num_seeds, num_queries) = random.Random(1), difference.shape
    of_video: dict[str, list[int]] = {}
    for query in range(num_queries):
        of_video.setdefault(clusters[query], []).append(query)
    centre = difference.mean(0)
    scaled = centre + (difference - centre) * math.sqrt(num_seeds / (num_seeds - 1))
    means = []
    for _ in range(num_draws):
        seeds = [chance.randrange(num_seeds) for _ in range(num_seeds)]
        queries = [query for _ in of_video for query in of_video[chance.choice(list(of_video))]]
        means.append(np.mean([scaled[seed, query] for seed in seeds for query in queries]))
    half = t * np.std(means, ddof=1)
    return difference.mean() - half, difference.mean() + half


def test_the_interval_over_seeds_and_videos_is_that_of_drawing_both() -> None:
    rng = np.random.default_rng(0)
    clusters = [f"v{query // 3}" for query in range(24)]
    of_video, of_seed = np.repeat(rng.normal(0, 8, 8), 3), rng.normal(0, 3, (4, 1))
    difference = 2 + of_video + of_seed + rng.normal(0, 2, (4, 24))
    found = compare_queries(difference, clusters, 0.95)
    low, high = interval_by_loops(difference, clusters, t=t_975(freedom_by_hand(difference, clusters)))
    assert (found.count, found.num_videos, found.mean) == (4, 8, pytest.approx(difference.mean()))
    half = (high - low) / 2
    assert found.low == pytest.approx(low, abs=0.08 * half)
    assert found.high == pytest.approx(high, abs=0.08 * half)


def test_a_difference_that_hangs_on_few_videos_is_no_finding_although_all_seeds_agree() -> None:
    """Over seeds alone: -1.7 +- 0; one video of ten makes all of it."""
    difference = np.zeros((3, 10))
    difference[:, 0] = -17.0
    found = compare_queries(difference, [f"v{query}" for query in range(10)], 0.95)
    assert found.mean == pytest.approx(-1.7)
    assert not found.is_loss
    seeds_alone = compare_pairs(dict.fromkeys(range(3), -1.7), dict.fromkeys(range(3), 0.0), 0.95)
    assert seeds_alone is not None
    assert seeds_alone.is_loss


def test_where_videos_agree_the_interval_is_that_of_the_seeds() -> None:
    difference = np.repeat(np.array([[2.0], [3.0], [1.0], [2.0]]), 6, axis=1)
    found = compare_queries(difference, list("aabbcc"), 0.95)
    assert found.low == pytest.approx(2.0 - 1.299228, abs=0.06)  # by hand, above
    one = compare_queries(difference[:1], list("aabbcc"), 0.95)
    assert (one.low, one.high) == (None, None)

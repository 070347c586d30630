"""Means, spreads and paired intervals against figures worked out by hand."""

import pytest

from prvr_ray.tuning.statistics import Spread, paired_difference, spread

# Differences by hand: 2, 3, 1, 2 -> mean 2, sd sqrt(2/3) = 0.8164966, error 0.4082483; t(0.975, 3) = 3.182446 from a
# printed table: half width 1.299228.
BASE = {0: 100.0, 1: 104.0, 2: 98.0, 3: 102.0}
BETTER = {0: 102.0, 1: 107.0, 2: 99.0, 3: 104.0}


def test_mean_and_sample_standard_deviation() -> None:
    assert spread([1.0, 2.0, 4.0]) == Spread(3, pytest.approx(7 / 3), pytest.approx(1.5275252))
    assert spread([5.0]) == Spread(1, 5.0, None)
    assert spread([]) is None


def test_paired_interval_equals_the_hand_computation() -> None:
    found = paired_difference(BETTER, BASE, 0.95)
    assert found is not None
    assert (found.count, found.mean) == (4, pytest.approx(2.0))
    assert found.low == pytest.approx(2.0 - 1.299228, abs=1e-5)
    assert found.high == pytest.approx(2.0 + 1.299228, abs=1e-5)
    assert found.is_gain


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired_difference({0: 102.0, 1: 107.0, 7: 999.0}, {**BASE, 9: -999.0}, 0.95)
    assert found is not None
    # 2 and 3: mean 2.5, sd 0.7071068, error 0.5, t(0.975, 1) = 12.7062: half width 6.3531
    assert (found.count, found.mean) == (2, pytest.approx(2.5))
    assert found.low == pytest.approx(2.5 - 6.3531, abs=1e-3)
    assert not found.is_gain


def test_one_pair_has_no_interval_and_proves_nothing() -> None:
    found = paired_difference({0: 110.0}, {0: 100.0}, 0.95)
    assert found is not None
    assert (found.mean, found.low, found.high, found.is_gain) == (10.0, None, None, False)
    assert paired_difference({1: 3.0}, {0: 1.0}, 0.95) is None


def test_equal_runs_are_no_gain() -> None:
    found = paired_difference(BASE, BASE, 0.95)
    assert found is not None
    assert (found.mean, found.low, found.high, found.is_gain) == (0.0, 0.0, 0.0, False)

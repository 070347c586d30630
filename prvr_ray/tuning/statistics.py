"""What repeated runs show: mean and spread, and the paired difference to the base with its confidence interval."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Spread:
    """Runs of one configuration: how many, their mean, and their sample standard deviation (None for one run)."""

    count: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """How much better than the base: the mean of the paired differences and its interval (None for one pair)."""

    count: int
    mean: float
    low: float | None
    high: float | None

    @property
    def is_gain(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low is not None and self.low > 0

    @property
    def is_loss(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high is not None and self.high < 0


def spread(values: list[float]) -> Spread | None:
    """Mean and sample standard deviation (n - 1); None without a value."""
    if not values:
        return None
    return Spread(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired_difference(
    candidate: Mapping[int, float], base: Mapping[int, float], confidence: float
) -> Difference | None:
    """Student's t interval of the mean difference over the seeds that both have; None without such a seed.

    The seed sets initial weights, batches and dropout of both runs, so pairing takes out what a lucky seed gives both.

    Args:
        candidate, base: seed -> figure.
        confidence: of the two-sided interval, such as 0.95.
    """
    differences = [candidate[seed] - base[seed] for seed in sorted(candidate.keys() & base.keys())]
    if not differences:
        return None
    count, mean = len(differences), statistics.fmean(differences)
    if count == 1:
        return Difference(1, mean, None, None)
    error = statistics.stdev(differences) / math.sqrt(count)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    return Difference(count, mean, mean - half, mean + half)

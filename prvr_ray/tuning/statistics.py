"""What repeated runs show: mean and spread, and the paired difference to the base with its confidence interval."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_DRAWS = 4000  # the standard deviation of so many is within 2 % of its limit


@dataclass(frozen=True)
class Spread:
    """Runs of one configuration: how many, their mean, and their sample standard deviation (None for one run)."""

    count: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """How much better than the base: the mean of the paired differences and its interval (None for one pair).

    count: seeds. num_videos: videos that the interval resamples too; None: it is one over seeds alone.
    """

    count: int
    mean: float
    low: float | None
    high: float | None
    num_videos: int | None = None

    @property
    def is_gain(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low is not None and self.low > 0

    @property
    def is_loss(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high is not None and self.high < 0


def measure_spread(values: list[float]) -> Spread | None:
    """Mean and sample standard deviation (n - 1); None without a value."""
    if not values:
        return None
    return Spread(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def compare_pairs(candidate: Mapping[int, float], base: Mapping[int, float], confidence: float) -> Difference | None:
    """Student's t interval of the mean difference over the seeds that both have; None without such a seed.

    The seed sets initial weights, batches and dropout of both runs, so pairing takes out what a lucky seed gives both.

    Args:
        candidate, base: seed -> figure.
        confidence: of the two-sided interval, such as 0.95.
    """
    seeds = sorted(candidate.keys() & base.keys())
    if not seeds:
        return None
    differences = [candidate[seed] - base[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    if len(set(differences)) == 1:  # scipy gives NaN where nothing varies
        return Difference(len(seeds), mean, *((None, None) if len(seeds) == 1 else (mean, mean)))
    low, high = stats.t.interval(confidence, len(seeds) - 1, loc=mean, scale=stats.sem(differences))
    return Difference(len(seeds), mean, float(low), float(high))


def compare_queries(difference_SQ: np.ndarray, clusters: Sequence[str], confidence: float) -> Difference:
    """The interval of the mean difference over seeds and videos: with other seeds and other videos, where would it lie?

    Candidates are chosen on the same videos that they are compared on, and queries about one video are no independent
    evidence: both seeds and whole videos are drawn with replacement. The interval is Student's t with the standard
    deviation of these draws: with a handful of seeds percentiles would be too narrow. For the same reason each seed's
    deviation is scaled by sqrt(S / (S - 1)), as drawing S of S seeds shrinks their variance by (S - 1) / S. The degrees
    of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946): those of the seeds where they make the spread, those
    of the videos where these do.

    Args:
        difference_SQ: (S seeds, Q queries) SumR of the candidate less that of the base.
        clusters: per query, the video that it is about.
        confidence: of the two-sided interval.
    """
    num_seeds, mean = len(difference_SQ), float(difference_SQ.mean())
    _, cluster_Q = np.unique(np.asarray(clusters), return_inverse=True)
    counts_C = np.bincount(cluster_Q)
    if num_seeds == 1:
        return Difference(1, mean, None, None, len(counts_C))
    sums_SC = np.stack([np.bincount(cluster_Q, row_Q) for row_Q in difference_SQ])
    mean_C = sums_SC.mean(0)
    sums_SC = mean_C + (sums_SC - mean_C) * math.sqrt(num_seeds / (num_seeds - 1))
    rng = np.random.default_rng(0)
    seeds_BS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), _DRAWS)
    videos_BC = rng.multinomial(len(counts_C), np.full(len(counts_C), 1 / len(counts_C)), _DRAWS)
    means_B = ((seeds_BS @ sums_SC) * videos_BC).sum(1) / (num_seeds * (videos_BC @ counts_C))
    error = float(means_B.std(ddof=1))
    if not error > 0:
        return Difference(num_seeds, mean, mean, mean, len(counts_C))
    of_seeds = float(difference_SQ.mean(1).var(ddof=1)) / num_seeds
    of_videos = float(((mean_C - counts_C * mean) ** 2).sum()) / counts_C.sum() ** 2
    freedom = _join_freedom([(of_seeds, num_seeds - 1), (of_videos, len(counts_C) - 1)])
    low, high = stats.t.interval(confidence, freedom, loc=mean, scale=error)
    return Difference(num_seeds, mean, float(low), float(high), len(counts_C))


def _join_freedom(parts: list[tuple[float, int]]) -> float:
    """Satterthwaite's degrees of freedom of a sum of variances, each with its own."""
    parts = [(variance, freedom) for variance, freedom in parts if variance > 0 and freedom > 0]
    total = sum(variance for variance, _ in parts)
    return total**2 / sum(variance**2 / freedom for variance, freedom in parts) if parts else 1.0

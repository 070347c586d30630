"""Chooses the weights of the branches, the teacher among them, on validation queries. Arrays in, weights out.

A small validation split distinguishes few mixtures by SumR, which moves in steps and reaches its ceiling. The
cross-entropy of the queries uses every score, so it separates mixtures with far fewer queries. Among the mixtures that
it cannot separate from the best, the one with the most weight on the teacher is chosen, because the teacher was trained
on far more than a few captions.

Shapes: Q queries, W windows, V videos.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

TEACHER = "teacher"
_STEPS = 20  # of the grid of teacher fractions: 0.05 each
_TEMPERATURES = (1e-3, 1e3)  # the range searched, for scores with a spread of 1
_TEMPERATURE_STEPS = 24  # of a golden-section search: they shrink that range, in its logarithm, to 0.001 % of its width
_GOLDEN = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True, eq=False)
class ValidationScores:
    """The branches' scores on a validation split.

    Attributes:
        branches_QW: branch -> (Q, W) best cosine of each window; the teacher's under TEACHER.
        video_of_window_W: (W,) ints, the video of each window; every video from 0 to V - 1 has one.
        relevant: per query, the videos that are relevant to it, at least one.
    """

    branches_QW: Mapping[str, np.ndarray]
    video_of_window_W: np.ndarray
    relevant: Sequence[Sequence[int]]

    @property
    def num_videos(self) -> int:
        return int(self.video_of_window_W.max()) + 1

    @property
    def cluster_Q(self) -> np.ndarray:
        """The first relevant video of each query: queries about one video are not independent evidence."""
        return np.array([min(videos) for videos in self.relevant])

    def fused(self, weights: Mapping[str, float]) -> np.ndarray:
        """Return (Q, V) scores as a search computes them: the weighted sum per window, then a video's best window."""
        fused_QW = sum(weight * self.branches_QW[branch] for branch, weight in weights.items() if weight)
        return best_windows(np.asarray(fused_QW), self.video_of_window_W)


@dataclass(frozen=True)
class Candidate:
    """One teacher fraction on the grid.

    cross_entropy: mean over the queries, nats. difference: to the best candidate's, at least 0; standard_error: of that
    difference, clustered by video.
    """

    teacher_fraction: float
    temperature: float
    cross_entropy: float
    difference: float
    standard_error: float


@dataclass(frozen=True)
class Choice:
    """Chosen weights, which sum to 1, and what they were chosen from.

    reason: why the run's own weights were kept; empty where a choice could be made.
    """

    weights: dict[str, float]
    teacher_fraction: float
    num_queries: int
    num_videos: int
    candidates: tuple[Candidate, ...]
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "candidates": [asdict(candidate) for candidate in self.candidates]}


def choose_weights(scores: ValidationScores, own: Mapping[str, float]) -> Choice:
    """Choose how much of the served score the teacher gets.

    Both sides are divided by their spread (the standard deviation of a query's scores over the videos, averaged over
    queries), so that a fraction of 0.5 means that both count alike. Of the fractions on a grid of 0.05 the largest one
    is chosen whose cross-entropy is within one standard error of the best.

    Args:
        scores: of at least one query.
        own: the run's weights of the student's branches, in the order of its branches.

    Returns:
        The choice. With fewer than two relevant videos, or branches that give all videos one score, the run's own
        weights with the reason.
    """
    num_queries, num_videos = len(scores.relevant), scores.num_videos
    if len(np.unique(scores.cluster_Q)) < 2:
        reason = "the validation queries are about a single video: nothing can be chosen on it"
        return _own(own, num_queries, num_videos, reason)
    spreads = _spread(scores.fused(own)), _spread(scores.fused({TEACHER: 1.0}))
    if not min(spreads) > 0:
        reason = "a branch gives all validation videos the same score"
        return _own(own, num_queries, num_videos, reason)
    fractions = [step / _STEPS for step in range(_STEPS + 1)]
    mixtures = [_mixture(own, fraction, spreads) for fraction in fractions]
    losses = [fit_temperature(scores.fused(weights), scores.relevant) for weights in mixtures]
    best_Q = min((loss_Q for _, loss_Q in losses), key=np.mean)
    candidates = tuple(
        Candidate(fraction, temperature, float(loss_Q.mean()), *_clustered(loss_Q - best_Q, scores.cluster_Q))
        for fraction, (temperature, loss_Q) in zip(fractions, losses, strict=True)
    )
    chosen = max(place for place, item in enumerate(candidates) if item.difference <= item.standard_error)
    return Choice(_normalized(mixtures[chosen]), fractions[chosen], num_queries, num_videos, candidates)


def best_windows(scores_QW: np.ndarray, video_of_window_W: np.ndarray) -> np.ndarray:
    """Return the best score among the windows of each video, (Q, V); every video from 0 to V - 1 has a window."""
    order_W = np.argsort(video_of_window_W, kind="stable")
    rising_W = video_of_window_W[order_W]
    first_V = np.searchsorted(rising_W, np.arange(rising_W[-1] + 1))
    return np.maximum.reduceat(scores_QW[:, order_W], first_V, axis=1)


def fit_temperature(scores_QV: np.ndarray, relevant: Sequence[Sequence[int]]) -> tuple[float, np.ndarray]:
    """Find the softmax temperature with the least cross-entropy, and each query's cross-entropy there.

    Args:
        scores_QV: (Q, V), scaled to a spread of about 1: temperatures between 0.001 and 1,000 are searched.
        relevant: per query, the columns of its relevant videos; the target is uniform over them.

    Returns:
        The temperature, and (Q,) cross-entropies in nats.
    """
    scores_QV = scores_QV - scores_QV.max(axis=1, keepdims=True)
    target_Q = np.array([row_V[list(columns)].mean() for row_V, columns in zip(scores_QV, relevant, strict=True)])

    def loss_at(log_temperature: float) -> np.ndarray:
        inverse = np.exp(-log_temperature)
        return np.log(np.exp(inverse * scores_QV).sum(axis=1)) - inverse * target_Q

    # The mean is convex in the inverse temperature, so it has a single minimum over the logarithm too.
    low, high = np.log(_TEMPERATURES)
    for _ in range(_TEMPERATURE_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if loss_at(left).mean() <= loss_at(right).mean():
            high = right
        else:
            low = left
    middle = (low + high) / 2
    return float(np.exp(middle)), loss_at(middle)


def _own(own: Mapping[str, float], num_queries: int, num_videos: int, reason: str) -> Choice:
    return Choice(_normalized({**own, TEACHER: 0.0}), 0.0, num_queries, num_videos, (), reason)


def _spread(scores_QV: np.ndarray) -> float:
    """Return the standard deviation of a query's scores over the videos, averaged over the queries."""
    return float(scores_QV.std(axis=1).mean())


def _mixture(own: Mapping[str, float], fraction: float, spreads: tuple[float, float]) -> dict[str, float]:
    """Return weights that give the student's scores the spread 1 - fraction, and the teacher's the spread fraction."""
    student = {branch: (1 - fraction) * weight / spreads[0] for branch, weight in own.items()}
    return {**student, TEACHER: fraction / spreads[1]}


def _normalized(weights: Mapping[str, float]) -> dict[str, float]:
    """Scale the weights to a sum of 1, so that scores have the size of cosines. The ranking stays the same."""
    total = sum(weights.values())
    return {branch: weight / total for branch, weight in weights.items()}


def _clustered(value_Q: np.ndarray, cluster_Q: np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error, allowing for queries of one video that vary together."""
    _, place_Q = np.unique(cluster_Q, return_inverse=True)
    count_C, mean = np.bincount(place_Q), value_Q.mean()
    residual_C = np.bincount(place_Q, value_Q) - count_C * mean
    num_clusters = len(count_C)
    variance = num_clusters / (num_clusters - 1) * (residual_C**2).sum() / len(value_Q) ** 2
    return float(mean), float(np.sqrt(variance))

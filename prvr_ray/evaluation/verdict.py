"""Decides whether a split shows that the student is better than its teacher.

Shapes: Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prvr_ray.evaluation.intervals import bootstrap
from prvr_ray.retrieval.metrics import summarize

FEWEST_QUERIES = 30  # with fewer, an interval is not informative
_NUM_RESAMPLES, _CONFIDENCE, _SEED = 2000, 0.95, 0


@dataclass(frozen=True)
class Comparison:
    """One row's SumR minus another's, over the same queries.

    mean: of the paired differences. low, high: 95 % interval, resampling videos with all their queries.
    """

    mean: float
    low: float
    high: float
    num_queries: int
    num_videos: int

    @property
    def is_gain(self) -> bool:
        """Whether there are enough queries, and the whole interval lies above 0."""
        return self.num_queries >= FEWEST_QUERIES and self.low > 0


def compare(first: Sequence[np.ndarray], second: Sequence[np.ndarray], clusters: Sequence[str]) -> Comparison:
    """Compare two rankings of the same queries.

    Args:
        first, second: per query, the sorted ranks of its relevant videos.
        clusters: per query, the video that it is about.
    """
    difference_Q = sumr_of_queries(first) - sumr_of_queries(second)
    low, high = bootstrap(
        difference_Q[:, None], clusters, num_resamples=_NUM_RESAMPLES, confidence=_CONFIDENCE, seed=_SEED
    )[:, 0]
    return Comparison(float(difference_Q.mean()), float(low), float(high), len(difference_Q), len(set(clusters)))


def sumr_of_queries(ranks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the SumR of each query alone, (Q,); their mean is the SumR of the split."""
    return np.array([summarize([ranks_q])["sumr"] for ranks_q in ranks])


def warn_of_student(comparison: Comparison, split: str) -> str:
    """Word a warning for the user, or return an empty string if the student is shown to be better than its teacher.

    Args:
        comparison: the student against its teacher.
        split: where they were compared.
    """
    evidence = f"{comparison.num_queries} queries about {comparison.num_videos} videos"
    if comparison.num_queries < FEWEST_QUERIES:
        return (
            f"the {split} split has {evidence}: too few to tell whether the student is better than its teacher "
            f"(at least {FEWEST_QUERIES} queries are needed)"
        )
    if comparison.low > 0:
        return ""
    said = "below its teacher" if comparison.high < 0 else "not shown to be better than its teacher"
    return (
        f"the student is {said} on the {split} split: SumR {comparison.mean:+.1f}, 95 % interval "
        f"{comparison.low:+.1f} to {comparison.high:+.1f} ({evidence})"
    )

"""Bootstrap intervals: how far a figure of a test split can be trusted.

Shapes: Q queries, M figures, C clusters, B resamples.
"""

from collections.abc import Sequence

import numpy as np

_DRAWS_AT_ONCE = 4_000_000  # counts held at a time, 8 bytes each, for any number of clusters


def bootstrap(
    values_QM: np.ndarray, clusters: Sequence[str], *, num_resamples: int, confidence: float, seed: int
) -> np.ndarray:
    """Compute percentile intervals of the means over queries, by resampling clusters of queries.

    Queries about one video are not independent evidence, so whole videos are drawn, each with all its queries.

    Args:
        values_QM: (Q, M) one value per query and figure; for a paired difference, the difference of two runs.
        clusters: per query, the video that it is about.
        num_resamples: how many resamples to draw, with replacement.
        confidence: fraction of the resamples inside the interval, in (0, 1).
        seed: of the random draws.

    Returns:
        (2, M) lower and upper ends. With a single cluster both ends equal the mean.
    """
    _, cluster_Q = np.unique(np.asarray(clusters), return_inverse=True)
    counts_C = np.bincount(cluster_Q)
    sums_CM = np.zeros((len(counts_C), values_QM.shape[1]))
    np.add.at(sums_CM, cluster_Q, values_QM)
    rng, at_once = np.random.default_rng(seed), max(1, _DRAWS_AT_ONCE // len(counts_C))
    sizes = [min(at_once, num_resamples - start) for start in range(0, num_resamples, at_once)]
    means_BM = np.concatenate([_resampled_means(rng, size, sums_CM, counts_C) for size in sizes])
    outside = (1 - confidence) / 2
    return np.quantile(means_BM, [outside, 1 - outside], axis=0)


def _resampled_means(rng: np.random.Generator, size: int, sums_CM: np.ndarray, counts_C: np.ndarray) -> np.ndarray:
    num_clusters = len(counts_C)
    times_drawn_BC = rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=size).astype(float)
    return (times_drawn_BC @ sums_CM) / (times_drawn_BC @ counts_C)[:, None]

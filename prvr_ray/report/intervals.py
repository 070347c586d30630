"""How far a figure of a test split can be trusted: bootstrap intervals.

Shapes: Q queries, M figures, C clusters, B resamples.
"""

from collections.abc import Sequence

import numpy as np


def bootstrap(
    values_QM: np.ndarray, clusters: Sequence[str], *, num_resamples: int, confidence: float, seed: int
) -> np.ndarray:
    """Percentile intervals of the means over queries, resampling clusters of queries.

    Queries about one video are no independent evidence, so whole videos are drawn, with all their queries.

    Args:
        values_QM: (Q, M) one value per query and figure; for a paired difference, the difference of two runs.
        clusters: per query, the video that it is about.
        num_resamples: draws with replacement.
        confidence: share of the draws inside the interval, in (0, 1).
        seed: of the draws.

    Returns:
        (2, M) lower and upper ends. One cluster alone gives ends equal to the mean.
    """
    _, cluster_Q = np.unique(np.asarray(clusters), return_inverse=True)
    counts_C = np.bincount(cluster_Q)
    sums_CM = np.zeros((len(counts_C), values_QM.shape[1]))
    np.add.at(sums_CM, cluster_Q, values_QM)
    draws_BC = np.random.default_rng(seed).multinomial(
        len(counts_C), np.full(len(counts_C), 1 / len(counts_C)), size=num_resamples
    )
    means_BM = (draws_BC @ sums_CM) / (draws_BC @ counts_C)[:, None]
    outside = (1 - confidence) / 2
    return np.quantile(means_BM, [outside, 1 - outside], axis=0)

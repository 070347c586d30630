"""Hubness: how similar a video is to queries in general. A video similar to every query pushes better answers down.

The hubness of a video is the mean of its highest scores among training queries, as in QB-Norm (Bogolin et al., CVPR
2022), whose querybank is the training set too. A fraction of it can be subtracted from the video's scores. No test
query is used.

Shapes: Q queries, V videos.
"""

import numpy as np


def hubness(scores_QV: np.ndarray, neighbours: int) -> np.ndarray:
    """Compute the mean of each video's highest scores among some queries.

    Args:
        scores_QV: (Q, V) scores of training queries.
        neighbours: how many of a video's highest scores to average, at least 1; all of them if there are fewer.

    Returns:
        (V,) float32; zeros if there are no queries.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}; use 1 or more")
    num_queries, num_videos = scores_QV.shape
    if not num_queries:
        return np.zeros(num_videos, np.float32)
    first = max(0, num_queries - neighbours)
    return np.partition(scores_QV, first, axis=0)[first:].mean(axis=0).astype(np.float32)


def sample_queries(query_ids: list[str], limit: int, seed: int) -> list[str]:
    """Draw at most `limit` of the queries. The sample does not depend on their order: ids are sorted first."""
    known = sorted(query_ids)
    if len(known) <= limit:
        return known
    chosen = np.random.default_rng(seed).choice(len(known), size=limit, replace=False)
    return [known[place] for place in sorted(chosen.tolist())]

"""Scores every branch of a run on a split, as full matrices, to choose weights and to measure hubness. No Ray here.

At most MOST_QUERIES queries are used, which bounds the cost for any split: the scores of 2,000 queries and 2,000 videos
take 16 MB per branch, and choosing among 21 mixtures of them takes half a minute on two cores.

Shapes: Q queries, W windows, R rows of a block, D features.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from prvr_ray.retrieval.blocks import FrameBlock

MOST_QUERIES = 2000
SEED = 9527  # of the sample that is drawn where a split has more queries
_QUERIES_AT_ONCE = 256  # times 256 videos of 128 frames: 32 MB of products


def score_windows(queries: Sequence[np.ndarray], blocks: Iterable[FrameBlock]) -> tuple[list[np.ndarray], list[str]]:
    """Compute the best cosine of each window for each query, branch by branch.

    Plain float32 products are precise enough for a choice of weights; reported ranks come from exact dot products.

    Args:
        queries: per branch, (Q, D) unit rows.
        blocks: read once.

    Returns:
        Per branch (Q, W) float32, and the video of each window.
    """
    parts: list[list[np.ndarray]] = [[] for _ in queries]
    video_ids: list[str] = []
    for block in blocks:
        video_ids += block.video_ids
        for branch, rows_QD in enumerate(queries):
            rows_RD = np.asarray(block.frames[branch], np.float32)
            parts[branch].append(_maxima(rows_QD.astype(np.float32), rows_RD, block.branch_offsets[branch]))
    return [np.concatenate(of_branch, axis=1) for of_branch in parts], video_ids


def _maxima(queries_QD: np.ndarray, rows_RD: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    starts = range(0, len(queries_QD), _QUERIES_AT_ONCE)
    products = (queries_QD[start : start + _QUERIES_AT_ONCE] @ rows_RD.T for start in starts)
    return np.concatenate([np.maximum.reduceat(products_QR, offsets[:-1], axis=1) for products_QR in products])

"""Ranks and the metrics computed from them: R@K, SumR, MedR, MeanR and mAP; and the recall of moments.

Ranks start at 1, and ties count against the relevant video, so that a constant score earns nothing.
Shape suffixes: Q queries, V videos.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

RECALL_AT = (1, 5, 10, 100)


def ranks(scores_QV: np.ndarray | torch.Tensor, relevant: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Rank the relevant videos of every query.

    Args:
        scores_QV: (Q, V), higher is better.
        relevant: per query, the columns of its relevant videos; a query may have none.

    Returns:
        Per query, the sorted int64 ranks (from 1) of all its relevant videos. Among equal scores, irrelevant videos
        come first.

    Raises:
        ValueError: NaN scores, lists in `relevant` that do not match the rows in number, or a column that does not
            exist.
    """
    scores_QV = np.asarray(scores_QV)
    if len(relevant) != len(scores_QV):
        raise ValueError(f"scores have {len(scores_QV)} queries, but `relevant` has {len(relevant)}")
    if np.isnan(scores_QV).any():
        raise ValueError("scores hold NaN")
    return [_ranks_of_one(row_V, columns) for row_V, columns in zip(scores_QV, relevant, strict=True)]


def _ranks_of_one(scores_V: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    chosen = np.unique(np.asarray(columns, dtype=np.int64))
    if len(chosen) and not 0 <= chosen[0] <= chosen[-1] < len(scores_V):
        raise ValueError(f"relevant columns {chosen.tolist()} of {len(scores_V)} videos")
    others = np.sort(np.delete(scores_V, chosen))
    return ranks_from_counts(len(others) - np.searchsorted(others, scores_V[chosen], side="left"))


def ranks_from_counts(num_irrelevant_above: np.ndarray) -> np.ndarray:
    """Turn counts into ranks.

    Args:
        num_irrelevant_above: per relevant video of one query, how many irrelevant videos score at least as high.

    Returns:
        The sorted ranks, int64, from 1.
    """
    counts = np.sort(np.asarray(num_irrelevant_above, dtype=np.int64))
    return counts + np.arange(1, len(counts) + 1)


def summarize(ranks_of_queries: Sequence[np.ndarray]) -> dict[str, float]:
    """Summarise ranks; METHOD: "Evaluation".

    Args:
        ranks_of_queries: per query, the sorted ranks of its relevant videos, as `ranks` returns them.

    Returns:
        r1, r5, r10, r100: percent, the mean fraction of a query's relevant videos among the first K; a query with more
        than K of them counts as complete with K. sumr: their sum. medr, meanr: median and mean rank of a query's best
        relevant video. map: mean average precision, in [0, 1].

    Raises:
        ValueError: no queries, or a query without a relevant video.
    """
    if not ranks_of_queries or not all(len(ranks_q) for ranks_q in ranks_of_queries):
        raise ValueError("metrics need at least one query, and a relevant video for every query")
    recalls = {f"r{k}": 100 * float(np.mean([_recall(r, k) for r in ranks_of_queries])) for k in RECALL_AT}
    best = np.array([ranks_q[0] for ranks_q in ranks_of_queries])
    precisions = [np.mean(np.arange(1, len(ranks_q) + 1) / ranks_q) for ranks_q in ranks_of_queries]
    return recalls | {
        "sumr": sum(recalls.values()),
        "medr": float(np.median(best)),
        "meanr": float(best.mean()),
        "map": float(np.mean(precisions)),
    }


def _recall(ranks_q: np.ndarray, k: int) -> float:
    return np.searchsorted(ranks_q, k, side="right") / min(len(ranks_q), k)


def summarize_by_ratio(
    ranks_of_queries: Sequence[np.ndarray], ratios: np.ndarray, edges: Sequence[float] = (0.2, 0.4)
) -> dict[str, dict[str, float]]:
    """Break the summary down by moment-to-video ratio (moment length / video length).

    Args:
        ranks_of_queries: as for `summarize`.
        ratios: (Q,) in [0, 1]; NaN for a query without an annotated moment, which is in no group.
        edges: inner borders of the groups, ascending.

    Returns:
        "0.0-0.2" and so on -> the summary and `queries`, the group's size. A group includes its upper border; groups
        without queries are left out.
    """
    borders = [0.0, *edges, 1.0]
    group_of = np.where(np.isnan(ratios), -1, np.searchsorted(np.asarray(edges), ratios, side="left"))
    groups = {}
    for group, (low, high) in enumerate(itertools.pairwise(borders)):
        members = [ranks_of_queries[q] for q in np.flatnonzero(group_of == group).tolist()]
        if members:
            groups[f"{_edge(low)}-{_edge(high)}"] = summarize(members) | {"queries": len(members)}
    return groups


def _edge(value: float) -> str:
    """Format with one decimal, or with more where the value has more."""
    return max(f"{value:.1f}", f"{value:g}", key=len)


def moment_recall(
    spans: np.ndarray, annotated: Sequence[np.ndarray], thresholds: Sequence[float] = (0.3, 0.5, 0.7)
) -> dict[str, float]:
    """Compute the fraction of queries whose single predicted span overlaps an annotated moment enough.

    Args:
        spans: (Q, 2) start and end in seconds; NaN where nothing was predicted, which counts as a miss.
        annotated: per query, (num_moments, 2) in seconds, at least one; the largest overlap is used.
        thresholds: the least intersection over union for a hit.

    Returns:
        "r1_iou0.3" and so on, percent. Without queries, an empty dict.
    """
    if not len(annotated):
        return {}
    best = np.array([temporal_iou(span, moments).max() for span, moments in zip(spans, annotated, strict=True)])
    return {f"r1_iou{threshold}": 100 * float(np.mean(best >= threshold)) for threshold in thresholds}


def temporal_iou(span: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the intersection over union of one span with each of several; (start, end) in seconds, 0 for NaN spans."""
    overlap = np.minimum(span[1], moments[:, 1]) - np.maximum(span[0], moments[:, 0])
    union = np.maximum(span[1], moments[:, 1]) - np.minimum(span[0], moments[:, 0])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.maximum(overlap, 0) / union, nan=0.0)

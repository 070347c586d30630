"""Finds the moment of an answer: when, in the winning window, the fused similarity to the query is high.

Shape suffixes: P pairs of a query and a window, F frames of the longest window, Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prvr_ray.retrieval.blocks import Array, BranchRows, FrameBlock, as_tensor
from prvr_ray.retrieval.exact_dots import window_dots
from prvr_ray.retrieval.matmul import full_precision


@dataclass(frozen=True, eq=False)
class Moments:
    """Per pair, (P,) float64 seconds as a player shows them: the middle of the best frame, and the moment's span."""

    peak_s: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray


@dataclass(frozen=True, eq=False)
class FoundMoments(Moments):
    """Moments, and the curves in which they were found.

    Attributes:
        curve_PF: float32, the fused score of every frame; -inf past a window's end.
        score_P: float32, the window's score: the weighted sum of each branch's own maximum.
    """

    curve_PF: np.ndarray
    score_P: np.ndarray


def find_moments(
    queries: Sequence[tuple[float, Array]],
    block: FrameBlock,
    edges_s: np.ndarray,
    query_P: Array,
    window_P: Array,
    threshold: float,
) -> FoundMoments:
    """Find the moment of each pair of a query and a window. `score`, `search` and `evaluate` all call this.

    Args:
        queries: per branch, its weight and (Q, D) unit rows. The work runs on the device of these tensors.
        block: holds the windows; its branches must have the same frames.
        edges_s: time edges of all windows of the block, one window after another, (frames + 1) each.
        query_P, window_P: each pair's row of the queries and window of the block.
        threshold: see `locate`.

    Raises:
        ValueError: branches that differ in their frames.
    """
    weights = [weight for weight, _ in queries]
    curves = branch_curves([rows_QD for _, rows_QD in queries], block, query_P, window_P)
    curve_PF = fuse_curves(weights, curves)
    first_edge_W = block.branch_offsets[0][:-1] + np.arange(len(block.video_ids))
    found = locate(curve_PF, edges_s, first_edge_W[np.asarray(torch.as_tensor(window_P).cpu())], threshold)
    # A window's score adds the branches' maxima, which may lie at different frames: it can exceed the curve's peak.
    score_P = sum(weight * curve.max(1, initial=-np.inf) for weight, curve in zip(weights, curves, strict=True))
    return FoundMoments(found.peak_s, found.start_s, found.end_s, curve_PF, np.asarray(score_P))


def branch_curves(queries: Sequence[Array], block: FrameBlock, query_P: Array, window_P: Array) -> list[np.ndarray]:
    """Compute the similarity of every frame, branch by branch.

    Args:
        queries: per branch, (Q, D) unit rows.
        block: holds the windows; its branches must have the same frames.
        query_P, window_P: each pair's row of the queries and window of the block.

    Returns:
        Per branch (P, F) float32, -inf past a window's end.

    Raises:
        ValueError: branches that differ in their frames.
    """
    first = block.branch_offsets[0]
    if not all(np.array_equal(offsets, first) for offsets in block.branch_offsets):
        raise ValueError("a fused curve needs the same frames in every branch")
    device = as_tensor(queries[0]).device
    pairs = [torch.as_tensor(item, device=device) for item in (query_P, window_P)]
    with full_precision():
        return [
            window_dots(BranchRows(as_tensor(rows_RD).to(device), first), as_tensor(rows_QD).float(), *pairs)
            .cpu()
            .numpy()
            for rows_QD, rows_RD in zip(queries, block.frames, strict=True)
        ]


def fuse_curves(weights: Sequence[float], curves: Sequence[np.ndarray]) -> np.ndarray:
    """Return the weighted sum of the curves of `branch_curves`: (P, F), -inf past a window's end."""
    is_frame_PF = ~np.isneginf(curves[0])
    fused_PF = sum(weight * np.where(is_frame_PF, curve, 0) for weight, curve in zip(weights, curves, strict=True))
    return np.where(is_frame_PF, fused_PF, -np.inf).astype(np.float32)


def locate(curve_PF: np.ndarray, edges_s: np.ndarray, first_edge_P: np.ndarray, threshold: float) -> Moments:
    """Find the moment in each curve: the consecutive frames around the peak that do not fall below a level.

    Args:
        curve_PF: as `fuse_curves` returns them.
        edges_s: time edges of windows, one window after another, each (frames + 1); NaN where times are unknown.
        first_edge_P: index in edges_s of the first edge of each pair's window.
        threshold: the level, in [0, 1], between the curve's median (0) and its peak (1).
    """
    longest = curve_PF.shape[1]
    is_frame_PF = ~np.isneginf(curve_PF)
    peak_P = curve_PF.argmax(1)
    middle_P, top_P = _medians(curve_PF, is_frame_PF.sum(1)), curve_PF.max(1, initial=-np.inf)
    is_low_PF = curve_PF < (middle_P + threshold * (top_P - middle_P))[:, None]
    place_F = np.arange(longest)
    start_P = np.where(is_low_PF & (place_F < peak_P[:, None]), place_F + 1, 0).max(1, initial=0)
    # Frames past the window's end count as low: a moment that reaches the end stops there.
    stop_P = np.where(is_low_PF & (place_F > peak_P[:, None]), place_F, longest).min(1, initial=longest)
    return Moments(
        peak_s=(edges_s[first_edge_P + peak_P] + edges_s[first_edge_P + peak_P + 1]) / 2,
        start_s=edges_s[first_edge_P + start_P],
        end_s=edges_s[first_edge_P + stop_P],
    )


def _medians(curve_PF: np.ndarray, lengths_P: np.ndarray) -> np.ndarray:
    """Return the median of each curve's own frames; the sort puts the -inf past a window's end in front of them."""
    rising_PF = np.sort(curve_PF, axis=1)
    first_P = curve_PF.shape[1] - lengths_P
    middles = np.stack([first_P + (lengths_P - 1) // 2, first_P + lengths_P // 2], axis=1)
    return np.take_along_axis(rising_PF, middles, axis=1).mean(1)

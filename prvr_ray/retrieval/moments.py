"""The moment of an answer: where in the winning window the query's fused similarity is high, in seconds.

Shape suffixes: P pairs of a query and a window, F frames of the longest window, Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prvr_ray.retrieval.blocks import Array, BranchRows, FrameBlock, as_tensor
from prvr_ray.retrieval.multiplying import full_precision
from prvr_ray.retrieval.routine import window_dots


@dataclass(frozen=True, eq=False)
class Moments:
    """Per pair, in seconds since the start of the stream, (P,) float64: the middle of the best frame, and the span."""

    peak_s: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray


def branch_curves(queries: Sequence[Array], block: FrameBlock, query_P: Array, window_P: Array) -> list[np.ndarray]:
    """The similarity of every frame, branch by branch.

    Args:
        queries: per branch, (Q, D) unit rows.
        block: holds the windows; its branches must have the same frames.
        query_P, window_P: rows of the queries and of the block.

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
    """The weighted sum of what `branch_curves` returns: (P, F), -inf past a window's end."""
    is_frame_PF = ~np.isneginf(curves[0])
    fused_PF = sum(weight * np.where(is_frame_PF, curve, 0) for weight, curve in zip(weights, curves, strict=True))
    return np.where(is_frame_PF, fused_PF, -np.inf).astype(np.float32)


def locate(curve_PF: np.ndarray, edges_s: np.ndarray, first_edge_P: np.ndarray, threshold: float) -> Moments:
    """Find the moment in each curve: the run of frames around the peak that stay above a level.

    Args:
        curve_PF: as `fuse_curves` returns them.
        edges_s: time edges of windows, one window after another, each (frames + 1); NaN where times are unknown.
        first_edge_P: where the edges of each pair's window begin.
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
    """The median of each curve's own frames, which a sort leaves behind those past its end."""
    rising_PF = np.sort(curve_PF, axis=1)
    first_P = curve_PF.shape[1] - lengths_P
    middles = np.stack([first_P + (lengths_P - 1) // 2, first_P + lengths_P // 2], axis=1)
    return np.take_along_axis(rising_PF, middles, axis=1).mean(1)

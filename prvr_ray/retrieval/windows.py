"""Cuts a video's frames into windows of a length that the student takes, and keeps the time span of every frame.

Frame f of a window covers the half-open span [edges_s[f], edges_s[f + 1]), so moments are right for any frame rate,
sampling and cut. This module handles frame numbers and times only; `sample_uniform` of the student averages the
vectors. Shape suffixes: n frames of a video, F frames of a window.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Window:
    """Frames [start, stop) of a video as the student sees them.

    Attributes:
        start, stop: half-open range of the video's frames.
        edges_s: (F + 1) float64, ascending, seconds as a player shows them. F is stop - start, or the limit where the
            frames are sampled down to it.
    """

    start: int
    stop: int
    edges_s: np.ndarray


def cut_windows(
    timestamps_s: np.ndarray, duration_s: float | None, *, limit: int, windowing: str, overlap: int = 0
) -> list[Window]:
    """Cut a video into windows of at most `limit` frames.

    Args:
        timestamps_s: (n,) ascending, of the video's frames; NaN where times are unknown, which makes the edges NaN.
        duration_s: of the video. If None or too short, the last frame lasts as long as the one before it.
        limit: the most frames that the student takes.
        windowing: `whole`, one window, sampled down to the limit (METHOD: "Data preparation"); or `windows`, windows of
            `limit` frames, of which the last ends with the video and so may overlap more.
        overlap: frames that neighbouring windows share.

    Returns:
        The windows in order; none for a video without frames.

    Raises:
        ValueError: an overlap that leaves no step, or an unknown windowing.
    """
    n = len(timestamps_s)
    starts = window_starts(n, limit, windowing, overlap)
    if not starts:
        return []
    edges_s = frame_edges(timestamps_s, duration_s)
    if windowing == "whole" and n > limit:
        return [Window(0, n, edges_s[[*sample_starts(n, limit), n]])]
    spans = [(start, min(start + limit, n)) for start in starts]
    return [Window(start, stop, edges_s[start : stop + 1]) for start, stop in spans]


def window_starts(n: int, limit: int, windowing: str, overlap: int) -> list[int]:
    """Return the first frame of each window that `cut_windows` makes of n frames; an empty list for n = 0.

    Raises:
        ValueError: an overlap that leaves no step, or an unknown windowing.
    """
    if windowing not in ("whole", "windows"):
        raise ValueError(f"unknown windowing {windowing!r}; one of whole, windows")
    if not 0 <= overlap < limit:
        raise ValueError(f"windows of {limit} frames cannot overlap by {overlap}; use 0 to {limit - 1}")
    if n <= limit or windowing == "whole":
        return [0] if n else []
    return np.unique(np.minimum(np.arange(0, n - overlap, limit - overlap), n - limit)).tolist()


def frame_edges(timestamps_s: np.ndarray, duration_s: float | None) -> np.ndarray:
    """Return the times halfway between frames, from the first picture to the end of the video: (n + 1) float64.

    The first frame covers as much time before its timestamp as after it, not everything from 0 on: where the sound
    starts before the picture, the first frame comes later.
    """
    times = np.asarray(timestamps_s, dtype=np.float64)
    if np.isnan(times).any():
        return np.full(len(times) + 1, np.nan)
    middles = (times[1:] + times[:-1]) / 2
    last_gap = times[-1] - times[-2] if len(times) > 1 else 0.0
    end = max(duration_s or 0.0, times[-1] + last_gap / 2)
    begin = max(0.0, times[0] - (middles[0] - times[0])) if len(times) > 1 else 0.0
    return np.concatenate([[min(begin, times[0])], middles, [end]])


def sample_starts(n: int, limit: int) -> np.ndarray:
    """Return the first frame of each of the `limit` parts that n > limit frames are averaged into: (limit,) int64.

    Here the last part ends with the video's last frame, which the published average leaves out.
    """
    edges = np.round(np.arange(limit + 1) / limit * n).astype(np.int64)
    return edges.clip(0, n - 1)[:-1]

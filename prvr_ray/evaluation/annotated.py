"""Selects the annotated moments that an evaluation uses: those that lie within their video."""

from typing import Any

import numpy as np
import pyarrow as pa

_SLACK_S = 1.0  # annotators round to seconds, and containers disagree with streams about a video's end
_NUM_NAMED = 10

Spans = dict[int, tuple[str, np.ndarray]]  # index of a query -> video_id, (M, 2) start and end in seconds


def within_videos(spans: Spans, query_ids: list[str], rows: pa.Table) -> tuple[Spans, dict[str, Any]]:
    """Leave out moments outside their video: those that start at its end or later, or end over a second after it.

    Args:
        spans: the annotated moments.
        query_ids: indexed by the keys of `spans`.
        rows: video_id and duration_s (seconds) of the videos' segments. All moments of a video of unknown duration are
            kept.

    Returns:
        The moments that are left, without the queries that have none left; and, if any moment was left out,
        `moments_outside_video` with their count and some of their queries.
    """
    durations_s: dict[str, float] = {}
    for video_id, duration_s in zip(rows["video_id"].to_pylist(), rows["duration_s"].to_pylist(), strict=True):
        is_known = duration_s is not None and not np.isnan(duration_s)
        durations_s[video_id] = max(durations_s.get(video_id, 0.0), duration_s if is_known else np.inf)
    kept: Spans = {}
    num_outside, such_as = 0, []
    for place, (video_id, spans_M2) in spans.items():
        end_s = durations_s.get(video_id, np.inf)
        is_inside_M = ~((spans_M2[:, 0] >= end_s) | (spans_M2[:, 1] > end_s + _SLACK_S))
        if is_inside_M.any():
            kept[place] = (video_id, spans_M2[is_inside_M])
        if not is_inside_M.all():
            num_outside += int((~is_inside_M).sum())
            such_as.append(query_ids[place])
    if not num_outside:
        return kept, {}
    return kept, {"moments_outside_video": {"count": num_outside, "such_as": such_as[:_NUM_NAMED]}}

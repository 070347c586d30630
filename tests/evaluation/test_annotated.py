"""Moments that lie outside their video are left out, counted and named; everything else stays."""

import math

import numpy as np
import pyarrow as pa
import pytest

from prvr_ray.evaluation.annotated import within_videos

ROWS = pa.table({"video_id": ["a", "a", "b", "c"], "duration_s": [25.0, 25.0, None, math.nan]})


def spans(*of_query):
    return {place: (video_id, np.array(moments, float)) for place, (video_id, *moments) in enumerate(of_query)}


@pytest.mark.parametrize(
    ("moment", "is_inside"),
    [
        ((100, 110), False),  # 100 s into a 25 s video
        ((25, 26), False),
        ((20, 26.5), False),
        ((0, 100), False),
        ((20, 25.9), True),  # rounding
        ((0, 25), True),
        ((24.9, 25.5), True),
    ],
)
def test_a_moment_outside_its_video_is_left_out(moment, is_inside):
    kept, found = within_videos(spans(("a", moment)), ["q"], ROWS)
    assert (len(kept) == 1) == is_inside
    assert found == ({} if is_inside else {"moments_outside_video": {"count": 1, "such_as": ["q"]}})


def test_moments_inside_stay_beside_those_outside_and_lengths_may_be_unknown():
    given = spans(("a", (1, 2), (100, 101), (3, 4)), ("b", (100, 200)), ("c", (100, 200)), ("a", (90, 91), (80, 81)))
    kept, found = within_videos(given, ["q0", "q1", "q2", "q3"], ROWS)
    assert sorted(kept) == [0, 1, 2]
    assert kept[0][1].tolist() == [[1, 2], [3, 4]]
    assert found == {"moments_outside_video": {"count": 3, "such_as": ["q0", "q3"]}}

"""Times of features are on the clock that a player shows, whichever version wrote the rows."""

import numpy as np
import pytest
from support.collection_rows import put, segment, video

from prvr_ray.collection import open_collection
from prvr_ray.schema import pack_times
from prvr_ray.storage import put_json

SPEC = {"teacher": {"dim": 2}, "student": {"dim": 3}, "shared": False, "format_version": 1}


def read(tmp_path, *rows):
    collection = open_collection(str(tmp_path))
    put(collection.video_shards, video(rows[0]["video_id"]))
    features = collection.features()
    put_json(features.store, "spec.json", SPEC)
    put(features.video_shards, *rows)
    (found,) = features.read_videos(features.complete())
    return found


def row(video_id, index, times_s, is_last=False, **changed):
    return segment(video_id, index, is_last=is_last, timestamps_s=pack_times(np.array(times_s)), **changed)


@pytest.mark.parametrize(
    ("video_id", "start_s", "expected"),
    [
        ("a.mp4", 20.0, [20, 21, 22, 23]),  # older rows: seconds since the first frame, and when that is shown
        ("a.mp4", None, [0, 1, 2, 3]),
        ("a.mkv", -0.08, [0, 1, 2, 3]),
        ("a.TS", 1.4, [0, 1, 2, 3]),  # the clock of an MPEG stream starts anywhere
        ("a.mp4", 0.0, [0, 1, 2, 3]),
    ],
)
def test_rows_of_the_first_version_are_shifted_by_their_start(tmp_path, video_id, start_s, expected):
    changed = {"start_s": start_s, "duration_s": 4.0}
    found = read(tmp_path, row(video_id, 0, [0, 1], **changed), row(video_id, 1, [2, 3], is_last=True, **changed))
    assert found.timestamps_s.tolist() == expected
    assert found.duration_s == expected[0] + 4


def test_a_video_may_have_rows_of_both_versions(tmp_path):
    old = row("a.mp4", 0, [0, 1], start_s=20.0, duration_s=4.0)
    new = row("a.mp4", 1, [22, 23], is_last=True, start_s=0.0, duration_s=24.0)
    found = read(tmp_path, old, new)
    assert found.timestamps_s.tolist() == [20, 21, 22, 23]
    assert found.duration_s == 24

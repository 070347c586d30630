"""From a file's packets to the ones that are decoded: the cheaper way follows from the distance of keyframes."""

import av
import numpy as np
import pytest
from support.rendering import read_number, render

from prvr_ray.video.container import Limits, VideoFile
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling, plan_segments, survey
from prvr_ray.video.segments import read_segments

LIMITS = Limits()


def ranges(path, sampling, **options):
    with VideoFile(str(path), LIMITS) as file:
        return [
            packets
            for plan in plan_segments(survey(file, lambda: None), sampling, **options)
            for packets in plan.ranges
        ]


@pytest.mark.parametrize(
    ("gop", "expected"),
    [
        (10, [(0, 0), (50, 50), (100, 100), (150, 150)]),  # a keyframe where a frame is wanted: seek to it
        (40, [(0, 0), (40, 50), (80, 100), (120, 150)]),
        (45, [(0, 0), (45, 50), (90, 100), (135, 150)]),
        (200, [(0, 150)]),  # no keyframe on the way: decode all
        (48, [(0, 0), (48, 50), (96, 100), (144, 150)]),
    ],
)
def test_seeking_or_sequential_follows_from_the_distance_of_keyframes(tmp_path, gop, expected):
    path = render(tmp_path / "video.mp4", 160, fps=10, gop=gop, b_frames=0)
    assert ranges(path, Sampling(fps=0.2)) == expected


def test_a_gap_that_costs_less_than_a_seek_is_decoded(tmp_path):
    path = render(tmp_path / "video.mp4", 40, fps=10, gop=5, b_frames=0)
    assert ranges(path, Sampling(fps=2.0)) == [(0, 35)]
    assert len(ranges(path, Sampling(fps=2.0), restart_packets=0.0)) == 8


def test_keyframes_only_decodes_keyframes_alone(tmp_path):
    path = render(tmp_path / "video.mp4", 100, fps=10, gop=20, b_frames=0)
    assert ranges(path, Sampling(keyframes_only=True)) == [(n, n) for n in (0, 20, 40, 60, 80)]


def test_times_that_step_back_come_out_in_order(tmp_path):
    """A muxer that wrote two packets' times the wrong way round."""
    path = render(tmp_path / "video.mkv", 40, fps=10, b_frames=0)
    data = path.read_bytes()
    second, next_one = b"\x81" + (2000).to_bytes(2), b"\x81" + (2100).to_bytes(2)  # track and milliseconds of a block
    assert data.count(second) == data.count(next_one) == 1
    path.write_bytes(data.replace(second, b"later").replace(next_one, second).replace(b"later", next_one))
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert times != sorted(times)
    (segment,) = read_segments(str(path), Sampling(fps=10.0), [FrameSpec((36, 48), "squash")], LIMITS)
    assert (np.diff(segment.timestamps_s) > 0).all()
    found = [read_number(frame) for frame in segment.frames[0]]
    assert set(range(40)) - set(found) <= {20, 21}
    assert [n for n in found if n not in (20, 21)] == [n for n in range(40) if n not in (20, 21)]

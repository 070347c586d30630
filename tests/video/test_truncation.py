"""How much of a video there is: the share speaks of the pictures alone, whatever the sound does."""

import av
import numpy as np
import pytest
from support.rendering import read_number, render

from prvr_ray.video.container import Limits
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import read_segments

SPECS = [FrameSpec((36, 48), "squash", "bilinear")]
SUFFIXES = ["mp4", "mov", "mkv", "webm", "flv", "ts", "avi", "mpg", "wmv"]


def render_with_sound(path, num_frames, sound_s, **options):
    codec = {"webm": "libvpx", "mpg": "mpeg2video", "wmv": "wmv2"}.get(path.suffix[1:], "libx264")
    rate = 25 if path.suffix == ".mpg" else 10
    frames = num_frames * rate // 10
    return render(path, frames, fps=rate, codec=codec, b_frames=0, gop=rate, sound_s=(0, sound_s), **options)


def decode(path):
    (segment,) = read_segments(str(path), Sampling(), SPECS, Limits())
    return segment


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_whole_video_with_longer_sound_is_whole(tmp_path, suffix):
    segment = decode(render_with_sound(tmp_path / f"v.{suffix}", 100, 60))
    assert len(segment.timestamps_s) == 10
    assert (segment.decoded_share, segment.warnings) == (1.0, ())


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv"])
def test_a_header_without_the_track_s_own_length_is_compared_with_the_sound(tmp_path, suffix):
    path = render_with_sound(tmp_path / f"v.{suffix}", 100, 60)
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATI0N"))
    segment = decode(path)
    assert (segment.decoded_share, segment.warnings) == (1.0, ())


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv", "mp4", "avi"])
@pytest.mark.parametrize("tagged", [True, False])
def test_a_cut_file_with_sound_is_cut(tmp_path, suffix, tagged):
    options = {"movflags": "faststart"} if suffix == "mp4" else None
    path = render_with_sound(tmp_path / f"v.{suffix}", 300, 30, container_options=options)
    data = path.read_bytes()
    if not tagged:
        data = data.replace(b"DURATION", b"DURATI0N")
    with av.open(str(path)) as container:
        middle = [packet for packet in container.demux(video=0) if packet.size][150]
    path.write_bytes(data[: middle.pos])
    segment = decode(path)
    numbers = [read_number(frame) for frame in segment.frames[0]]
    assert numbers == pytest.approx(10 * segment.timestamps_s, abs=2)  # an AVI begins with empty slots
    assert segment.warnings == ("truncated",)
    assert segment.decoded_share == pytest.approx(len(segment.timestamps_s) / 30, abs=0.1)
    assert 3 <= len(segment.timestamps_s) < 28


def test_a_hole_in_the_middle_is_counted(tmp_path):
    """30 s with a keyframe every second, of which the packets from 10 s to 20 s are zeros."""
    path = render(tmp_path / "v.mp4", 300, fps=10, gop=10, b_frames=0)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[100:200]:
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    segment = decode(path)
    assert segment.decoded_share == pytest.approx(20 / 30, abs=0.05)
    assert segment.warnings == ("truncated",)
    numbers = [read_number(frame) for frame in segment.frames[0]]
    assert np.array_equal(numbers, np.round(10 * segment.timestamps_s))

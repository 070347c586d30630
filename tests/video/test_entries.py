"""Where decoding may begin: keyframe flags are checked, not believed, and a decoder keeps its place."""

import av
import numpy as np
import pytest
from support.rendering import flag_every_sample, read_number, render, sequential

from prvr_ray.video.container import Limits, VideoFile
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import read_segments

SPECS = [FrameSpec((36, 48), "squash", "bilinear")]


def decode(path, sampling=None, **options):
    return list(read_segments(str(path), sampling or Sampling(), SPECS, Limits(), **options))


def numbers(segments):
    return [read_number(frame) for segment in segments for frame in segment.frames[0]]


def shown_each_second(path, seconds):
    """Of sequential decoding: the number of the frame that is shown at each second."""
    frames = sequential(path)
    return [max((time, number) for time, number in frames if time <= second + 1e-3)[1] for second in range(seconds)]


@pytest.mark.parametrize("codec", ["mpeg4", "libx265", "libx264", "mpeg2video", "libsvtav1", "libvpx-vp9"])
def test_samples_that_are_all_flagged_as_keyframes_lose_nothing(tmp_path, codec):
    path = flag_every_sample(render(tmp_path / "v.mp4", 500, fps=25, codec=codec, gop=100, b_frames=0))
    segments = decode(path, Sampling(segment_frames=7))
    assert numbers(segments) == shown_each_second(path, 20) == list(range(0, 500, 25))
    assert {segment.decoded_share for segment in segments} == {1.0}


def test_flv_tags_that_all_claim_keyframes_lose_nothing(tmp_path):
    path = render(tmp_path / "v.flv", 500, fps=25, codec="flv1", gop=100, b_frames=0)
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for place in places:  # the byte before the data: frame type in the high half, 2 is an inter frame
        assert data[place + 11] in (0x12, 0x22)
        data[place + 11] = 0x12
    path.write_bytes(data)
    assert numbers(decode(path)) == shown_each_second(path, 20) == list(range(0, 500, 25))


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_recovery_points_of_intra_refresh_are_no_entries(tmp_path, suffix, b_frames):
    options = {"intra-refresh": "1", "preset": "veryfast"} | ({} if b_frames else {"tune": "zerolatency"})
    path = render(
        tmp_path / f"v.{suffix}", 500, fps=25, gop=50, b_frames=b_frames, height=96, width=128, options=options
    )
    with av.open(str(path)) as container:
        flags = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert sum(flags) > 1, "the sample has recovery points that are flagged"
    segments = decode(path)
    assert numbers(segments) == [number for _, number in sequential(path)][::25] == list(range(0, 500, 25))
    assert {segment.decoded_share for segment in segments} == {1.0}


def test_a_damaged_keyframe_costs_the_frames_that_sequential_decoding_loses(tmp_path):
    """What comes is compared with sequential decoding that steps over damaged packets."""
    path = render(tmp_path / "v.mp4", 600, fps=10, gop=50, b_frames=0)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        damaged = [packet for packet in container.demux(video=0) if packet.size][300]
    assert damaged.is_keyframe
    data[damaged.pos : damaged.pos + damaged.size] = b"\xff" * damaged.size
    path.write_bytes(data)
    found = decode(path, Sampling(fps=0.2, segment_frames=3))
    whole = decode(path, Sampling(fps=0.2, segment_frames=3), restart_packets=float("inf"))
    for chosen, sequentially in zip(found, whole, strict=True):
        assert np.array_equal(chosen.timestamps_s, sequentially.timestamps_s)
    assert numbers(found)[:6] == [0, 50, 100, 150, 200, 250]
    assert numbers(found)[-5:] == [350, 400, 450, 500, 550]


class CountingFile(VideoFile):
    """Counts the packets that are decoded."""

    decoded = 0

    def decode(self, packet):
        CountingFile.decoded += packet is not None
        return super().decode(packet)


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("mp4", "mpeg4")])
def test_one_keyframe_in_a_long_file_is_decoded_once_whatever_the_segments(tmp_path, monkeypatch, suffix, codec):
    path = render(tmp_path / f"v.{suffix}", 600, fps=10, codec=codec, gop=600)
    monkeypatch.setattr("prvr_ray.video.segments.VideoFile", CountingFile)
    for segment_frames in (1024, 5):
        CountingFile.decoded = 0
        segments = decode(path, Sampling(segment_frames=segment_frames))
        assert numbers(segments) == list(range(0, 600, 10))
        assert CountingFile.decoded <= 600
    CountingFile.decoded = 0
    assert numbers(decode(path, Sampling(segment_frames=5), skip=range(6))) == list(range(300, 600, 10))
    assert CountingFile.decoded <= 600


def test_segments_behind_a_false_keyframe_are_decoded_once(tmp_path, monkeypatch):
    path = flag_every_sample(render(tmp_path / "v.mp4", 600, fps=10, codec="mpeg4", gop=600, b_frames=0))
    monkeypatch.setattr("prvr_ray.video.segments.VideoFile", CountingFile)
    CountingFile.decoded = 0
    assert numbers(decode(path, Sampling(segment_frames=5))) == list(range(0, 600, 10))
    assert CountingFile.decoded <= 700

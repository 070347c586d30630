"""Decoding real and rendered files: which frames come, when they are shown, and what damaged files give."""

import json

import numpy as np
import pytest
from rendering import read_number, render, rotate

from prvr_ray.corpus.container import Limits
from prvr_ray.corpus.errors import VideoError
from prvr_ray.corpus.frames import FrameSpec
from prvr_ray.corpus.packets import Sampling
from prvr_ray.corpus.video import read_segments

SMALL = [FrameSpec((36, 48), "squash", "bilinear")]
LIMITS = Limits()
EVERY_SECOND = Sampling()


def decode(path, sampling=EVERY_SECOND, specs=SMALL, **options):
    return list(read_segments(str(path), sampling, specs, LIMITS, **options))


def numbers(segments):
    return [read_number(frame) for segment in segments for frame in segment.frames[0]]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("flv", "libx264"),
        ("ts", "libx264"),
        ("avi", "libx264"),
        ("avi", "mpeg4"),
        ("mpg", "mpeg2video"),
        ("webm", "libvpx"),
        ("wmv", "wmv2"),
    ],
)
@pytest.mark.parametrize("fps", [1.0, 3.0, 25.0])
def test_frames_are_those_shown_at_the_grid(tmp_path, suffix, codec, fps):
    rate = 25
    b_frames = 0 if codec in ("libvpx", "wmv2") else 2
    path = render(tmp_path / f"video.{suffix}", 110, fps=rate, codec=codec, b_frames=b_frames)
    (segment,) = decode(path, Sampling(fps=fps))
    expected = sorted({int(k / fps * rate + 0.026) for k in range(1000) if k / fps * rate <= 109.026})
    assert numbers([segment]) == expected
    assert segment.timestamps_s == pytest.approx(np.array(expected) / rate, abs=1e-3)
    assert segment.is_last
    assert segment.decoded_share == 1.0
    assert segment.duration_s == pytest.approx(110 / rate, abs=0.05)


@pytest.mark.parametrize("restart_packets", [0.0, float("inf")], ids=["seeking", "sequential"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_frames_are_identical_whichever_way_they_are_reached(tmp_path, suffix, restart_packets):
    path = render(tmp_path / f"video.{suffix}", 200, fps=10, gop=30)
    sampling = Sampling(fps=0.7, segment_frames=4)
    chosen, forced = decode(path, sampling), decode(path, sampling, restart_packets=restart_packets)
    assert len(chosen) == 4
    for a, b in zip(chosen, forced, strict=True):
        assert np.array_equal(a.frames[0], b.frames[0])
        assert np.array_equal(a.timestamps_s, b.timestamps_s)


@pytest.mark.parametrize("suffix", ["mp4", "ts", "avi"])
def test_a_segment_alone_equals_the_same_segment_of_the_whole(tmp_path, suffix):
    path = render(tmp_path / f"video.{suffix}", 100, fps=10, gop=25)
    sampling = Sampling(fps=2.0, segment_frames=6)
    whole = decode(path, sampling)
    assert [segment.index for segment in whole] == [0, 1, 2, 3]
    assert [segment.is_last for segment in whole] == [False, False, False, True]
    assert [len(segment.timestamps_s) for segment in whole] == [6, 6, 6, 2]
    for segment in whole:
        (alone,) = decode(path, sampling, skip={0, 1, 2, 3} - {segment.index})
        assert np.array_equal(alone.frames[0], segment.frames[0])
        assert np.array_equal(alone.timestamps_s, segment.timestamps_s)
        assert alone.is_last == segment.is_last


def test_real_files_give_frames_or_a_failure_as_the_manifest_says(test_data):
    for line in (test_data / "videos/manifest.jsonl").read_text().splitlines():
        entry = json.loads(line)
        path = test_data / "videos" / entry["file"]
        if entry["frames_decoded"]:
            segments = decode(path)
            num_frames = sum(len(segment.timestamps_s) for segment in segments)
            assert 1 <= num_frames <= entry["duration_s"] + 1.5, entry["file"]
            assert segments[0].start_s == pytest.approx(entry["first_pts_s"], abs=0.002), entry["file"]
            assert segments[-1].duration_s == pytest.approx(entry["duration_s"], abs=0.15), entry["file"]
        else:
            with pytest.raises(VideoError) as failure:
                decode(path)
            assert failure.value.error_class in ("decode", "empty", "no_video_stream", "too_large"), entry["file"]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phone_s_rotation_is_undone(tmp_path, degrees):
    path = render(tmp_path / "video.mp4", 3, fps=1, height=96, width=128)
    (plain,) = decode(path, specs=[FrameSpec((96, 128), "squash")])
    rotate(path, degrees)
    size = (96, 128) if degrees == 180 else (128, 96)
    (turned,) = decode(path, specs=[FrameSpec(size, "squash")])
    upright = np.rot90(plain.frames[0], k=-degrees // 90, axes=(2, 3))  # tags turn clockwise
    assert np.array_equal(turned.frames[0], upright)

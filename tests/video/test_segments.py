"""Decoding real and rendered files: which frames come, when they are shown, and what damaged files give."""

import json

import av
import numpy as np
import pytest
from PIL import Image
from support.rendering import numbered_picture, read_number, render, rotate

from prvr_ray.video.container import Limits, VideoFile
from prvr_ray.video.errors import VideoError
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import read_segments

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
            with av.open(str(path), metadata_errors="replace") as container:
                start_s = entry["first_pts_s"] - (container.start_time or 0) / av.time_base
                start_s = start_s if len(container.streams) > 1 else 0
            assert segments[0].start_s == pytest.approx(max(0, start_s), abs=0.002), entry["file"]
            length_s = segments[-1].duration_s - segments[0].start_s
            assert length_s == pytest.approx(entry["duration_s"], abs=0.15), entry["file"]
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


@pytest.mark.parametrize("tag", [bytes(36), b"\x80\0\0\0" * 9, b"\xff" * 36], ids=["zeros", "lowest", "minus one"])
def test_a_damaged_rotation_is_left_alone(tmp_path, tag):
    path = render(tmp_path / "video.mp4", 3, fps=1)
    (plain,) = decode(path)
    rotate(path, 180, tag)
    (damaged,) = decode(path)
    assert np.array_equal(damaged.frames[0], plain.frames[0])


@pytest.mark.parametrize(
    ("codec", "pixels", "height", "width"),
    [
        ("libx264", "yuv420p10le", 48, 64),
        ("libx264", "yuv422p", 48, 64),
        ("libx264", "yuv444p", 47, 63),
        ("libx265", "yuv420p", 48, 64),
        ("libvpx-vp9", "yuva420p", 48, 64),
        ("ffv1", "bgra", 49, 65),
    ],
)
def test_pixel_formats_and_odd_sizes(tmp_path, codec, pixels, height, width):
    path = render(tmp_path / "video.mkv", 20, codec=codec, pixels=pixels, height=height, width=width, b_frames=0)
    assert numbers(decode(path, Sampling(fps=2.0))) == [0, 5, 10, 15]


def test_one_frame_is_a_video(tmp_path):
    (segment,) = decode(render(tmp_path / "video.mp4", 1))
    assert numbers([segment]) == [0]
    assert segment.timestamps_s.tolist() == [0.0]


def test_variable_frame_rate_shows_the_frame_of_the_moment_and_each_once(tmp_path):
    times = [0, 100, 1900, 2000, 2050, 7000, 7100]  # milliseconds
    (segment,) = decode(render(tmp_path / "video.mkv", len(times), times=times, b_frames=0))
    assert numbers([segment]) == [0, 1, 3, 4, 5]  # at 0, 1, 2, 3 to 6, 7 s
    assert segment.timestamps_s == pytest.approx([0.0, 0.1, 2.0, 2.05, 7.0])


def test_a_pause_longer_than_a_segment_gives_a_segment_without_frames(tmp_path):
    path = render(tmp_path / "video.mkv", 3, times=[0, 1000, 9000], b_frames=0)
    segments = decode(path, Sampling(segment_frames=3))
    assert [len(segment.timestamps_s) for segment in segments] == [2, 0, 0, 1]
    assert [segment.decoded_share for segment in segments] == [1.0] * 4


def test_a_clock_that_does_not_begin_at_zero_is_set_to_zero(tmp_path):
    path = render(tmp_path / "video.mkv", 30, times=[3000 + 100 * n for n in range(30)])
    (segment,) = decode(path)
    assert numbers([segment]) == [0, 10, 20]
    assert segment.timestamps_s == pytest.approx([0.0, 1.0, 2.0])
    assert segment.start_s == 0.0
    assert segment.decoded_share == 1.0
    assert segment.duration_s == pytest.approx(3.0, abs=0.01)


def test_keyframes_only_gives_the_last_keyframe_before_each_time(tmp_path):
    path = render(tmp_path / "video.mp4", 100, fps=10, gop=25)
    assert numbers(decode(path, Sampling(fps=1.0, keyframes_only=True))) == [0, 25, 50, 75]
    assert numbers(decode(path, Sampling(fps=0.2, keyframes_only=True))) == [0, 50]
    dense = render(tmp_path / "dense.mp4", 40, fps=10, gop=1, b_frames=0)
    assert numbers(decode(dense, Sampling(fps=1.0, keyframes_only=True))) == [0, 10, 20, 30]
    unordered = render(tmp_path / "video.avi", 100, fps=10, gop=25)
    assert numbers(decode(unordered, Sampling(fps=1.0, keyframes_only=True))) == [0, 25, 50, 75]


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv", "avi", "mp4"])
def test_a_truncated_file_is_used_and_says_how_much_there_was(tmp_path, suffix):
    codec = "libvpx" if suffix == "webm" else "libx264"
    options = {"movflags": "faststart"} if suffix == "mp4" else None
    b_frames = 0 if codec == "libvpx" else 2
    path = render(tmp_path / f"video.{suffix}", 300, fps=10, codec=codec, b_frames=b_frames, container_options=options)
    (whole,) = decode(path)
    assert (whole.decoded_share, whole.warnings) == (1.0, ())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (half,) = decode(path)
    assert half.warnings == ("truncated",)
    assert half.decoded_share == pytest.approx(len(half.timestamps_s) / 30, abs=0.1)
    assert 3 <= len(half.timestamps_s) < 28
    assert numbers([half]) == pytest.approx(10 * half.timestamps_s, abs=0.01)


def test_decoding_goes_on_behind_a_damaged_packet(tmp_path):
    path = render(tmp_path / "video.mp4", 100, fps=10, gop=10)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        damaged = next(packet for packet in packets if packet.is_keyframe and packet.pts * packet.time_base >= 3)
    data[damaged.pos : damaged.pos + damaged.size] = b"\xff" * damaged.size
    path.write_bytes(data)
    with av.open(str(path)) as container, pytest.raises(av.error.InvalidDataError):
        list(container.decode(video=0))
    (segment,) = decode(path)
    assert {0, 10, 20, 50, 60, 70, 80, 90} <= set(numbers([segment]))
    assert segment.decoded_share <= 1.0


def test_metadata_that_is_not_utf_8_is_no_hindrance(tmp_path):
    path = render(tmp_path / "video.mkv", 10, metadata={"title": "Xxxxxxxx"})
    path.write_bytes(path.read_bytes().replace(b"Xxxxxxxx", b"\xe9\xff\xfe\xe8\xe9\xe9\xe9\xe9"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert numbers(decode(path)) == [0]


def test_cover_art_is_not_the_video(tmp_path):
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 320, 240, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        picture = av.VideoFrame.from_ndarray(numbered_picture(99, 240, 320), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode(None)])
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, 48, 64), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    assert numbers(decode(path)) == [0, 10]


def test_a_picture_named_as_a_video_is_a_video_of_one_frame(tmp_path):
    Image.fromarray(numbered_picture(5, 48, 64)).save(tmp_path / "picture.jpg")
    (tmp_path / "picture.jpg").rename(tmp_path / "picture.mp4")
    assert numbers(decode(tmp_path / "picture.mp4")) == [5]


def test_sound_alone_has_no_video_stream(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(VideoError) as failure:
        decode(path)
    assert failure.value.error_class == "no_video_stream"


def test_one_thread_and_no_log_level_so_that_damaged_files_cannot_deadlock(tmp_path):
    with VideoFile(str(render(tmp_path / "video.mp4", 3)), LIMITS) as file:
        assert file.stream.codec_context.thread_count == 1
    assert av.logging.get_level() is None


def test_an_empty_file_and_a_missing_one_are_failures(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("empty.mp4", "missing.mp4"):
        with pytest.raises(VideoError) as failure:
            decode(tmp_path / name)
        assert failure.value.error_class == "decode"


def test_a_countdown_shows_its_own_time(test_data):
    """Each frame of the file shows 9:59 minus its second: the same second must look the same however it is reached."""
    path = test_data / "videos/long/10min.mkv"
    by_second = decode(path, Sampling(fps=1.0))
    by_minute = decode(path, Sampling(fps=1 / 60))
    frames, times = (
        np.concatenate([s.frames[0] for s in by_second]),
        np.concatenate([s.timestamps_s for s in by_second]),
    )
    assert times == pytest.approx(np.arange(600))
    assert by_minute[0].timestamps_s == pytest.approx(60 * np.arange(10))
    assert np.array_equal(by_minute[0].frames[0], frames[::60])

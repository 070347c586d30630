"""What a container says of its streams, and may be wrong about: several videos, sizes, pixels, rates and lengths."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from support.rendering import numbered_picture, read_number, render

from prvr_ray.video.container import Limits, VideoFile
from prvr_ray.video.errors import VideoError
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import read_segments

LIMITS = Limits()
SMALL = [FrameSpec((36, 48), "squash", "bilinear")]


def decode(path, sampling=None, specs=SMALL):
    return list(read_segments(str(path), sampling or Sampling(), specs, LIMITS))


def numbers(path, **options):
    return [read_number(frame) for segment in decode(path, **options) for frame in segment.frames[0]]


def error_class(path):
    with pytest.raises(VideoError) as failure:
        decode(path)
    assert str(failure.value)
    return failure.value.error_class


@pytest.mark.parametrize("best", [0, 1])
def test_of_several_video_streams_the_best_is_decoded(tmp_path, best):
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.disposition = av.stream.Disposition.default if number == best else av.stream.Disposition(0)
        for number in range(30):
            for first, stream in zip((0, 1000), streams, strict=True):
                picture = av.VideoFrame.from_ndarray(numbered_picture(first + number, 48, 64), format="rgb24")
                container.mux(stream.encode(picture))
        for stream in streams:
            container.mux(stream.encode(None))
    assert numbers(path) == [1000 * best + shown for shown in (0, 10, 20)]


def test_a_header_that_claims_a_huge_picture_is_refused_before_anything_is_decoded(tmp_path):
    path = render(tmp_path / "video.avi", 5, codec="huffyuv", pixels="yuv422p", b_frames=0)
    path.write_bytes(path.read_bytes().replace(struct.pack("<II", 64, 48), struct.pack("<II", 12336, 12336)))
    with pytest.raises(VideoError, match="12336x12336") as failure:
        VideoFile(str(path), LIMITS)
    assert failure.value.error_class == "too_large"


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:, 16:48] = 255  # a bar of half the width
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    ((segment,), (squashed,)) = (
        decode(path, specs=[FrameSpec((48, 48))]),
        decode(path, specs=[FrameSpec((48, 48), "squash")]),
    )
    # Shown 128 wide: the central square of 48 lies within the bar of 64. Squashed into it, the whole bar is seen.
    assert (segment.frames[0] > 200).all()
    assert (squashed.frames[0][0, 0, 24, [2, 24, 45]] > 128).tolist() == [False, True, False]


def test_a_file_that_opens_and_gives_no_frame_is_a_failure(tmp_path):
    path = render(tmp_path / "video.mp4", 20)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for packet in packets:
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 20  # so the header says
    assert error_class(path) == "decode"


def test_a_stream_without_a_packet_is_empty(tmp_path):
    path = tmp_path / "video.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    assert error_class(path) == "empty"


def test_the_number_of_frames_in_the_header_is_not_believed(tmp_path):
    """mkv and its like say 0; an AVI's length is its header's count, which may be one too high."""
    path = render(tmp_path / "video.avi", 30, codec="mpeg4", b_frames=0)
    data = path.read_bytes()
    assert data.count(struct.pack("<I", 30)) >= 2  # avih and strh
    path.write_bytes(data.replace(struct.pack("<I", 30), struct.pack("<I", 31)))
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 31
    (segment,) = decode(path)
    assert (numbers(path), segment.warnings, segment.decoded_share) == ([0, 10, 20], (), 1.0)
    with av.open(str(render(tmp_path / "video.mkv", 30))) as container:
        assert container.streams.video[0].frames == 0
    assert numbers(tmp_path / "video.mkv") == [0, 10, 20]


def test_without_a_rate_and_a_length_there_are_frames_all_the_same(tmp_path):
    """Bare H.264 has neither times nor a length: libav takes 25 frames a second."""
    path = render(tmp_path / "video.h264", 60)
    with av.open(str(path)) as container:
        assert container.streams.video[0].duration is None
    (segment,) = decode(path)
    assert segment.decoded_share == 1.0
    assert numbers(path)[:2] == [0, 25]


def test_a_rate_that_is_not_known_is_taken_as_25(tmp_path):
    with VideoFile(str(render(tmp_path / "video.mkv", 3)), LIMITS) as file:

        class Unknown:
            average_rate = duration = metadata = None
            frames = 0

        known, file.stream = file.stream, Unknown()
        assert file.frame_s() == 1 / 25
        file.stream.metadata = {}
        assert file.promise(0.0).video_s == pytest.approx(file.container.duration / av.time_base)
        file.stream = known

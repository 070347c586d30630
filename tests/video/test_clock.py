"""Clocks that restart, single wild times, and late starts: times are those that a player shows."""

import struct

import av
import numpy as np
import pytest
from support.rendering import read_number, render

from prvr_ray.video.clock import steady_clock
from prvr_ray.video.container import Limits
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import read_segments

SPECS = [FrameSpec((36, 48), "squash", "bilinear")]


def decode(path, sampling=None, **options):
    return list(read_segments(str(path), sampling or Sampling(), SPECS, Limits(), **options))


def numbers(segments):
    return [read_number(frame) for segment in segments for frame in segment.frames[0]]


def times(segments):
    return np.concatenate([segment.timestamps_s for segment in segments])


def join(path, parts):
    """Byte by byte, as `cat` does."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize(("suffix", "codec"), [("ts", "libx264"), ("ts", "mpeg2video"), ("mpg", "mpeg2video")])
@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(("num_parts", "seconds"), [(10, 2), (2, 10)])
def test_joined_recordings_play_one_after_the_other(tmp_path, suffix, codec, b_frames, num_parts, seconds):
    """The oracle counts frames: the n-th frame of 25 a second is shown at n / 25 s."""
    size = 25 * seconds
    parts = [
        render(tmp_path / f"{n}.{suffix}", size, fps=25, first=n * size, codec=codec, b_frames=b_frames)
        for n in range(num_parts)
    ]
    segments = decode(join(tmp_path / f"joined.{suffix}", parts), Sampling(segment_frames=7))
    assert np.round(25 * times(segments)) == pytest.approx(numbers(segments), abs=1)
    assert numbers(segments) == pytest.approx(np.arange(0, num_parts * size, 25), abs=1)
    assert segments[-1].duration_s == pytest.approx(num_parts * seconds, abs=0.3)
    assert {segment.warnings for segment in segments} == {("clock_restarts",)}
    assert segments[-1].decoded_share == 1.0


@pytest.mark.parametrize(
    "ticks", [-90_000 * 3600, 90_000 * 3600, -90_000 * 4], ids=["lower", "higher", "a little lower"]
)
@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_clock_that_restarts_elsewhere_goes_on(tmp_path, ticks, b_frames):
    first, second = (render(tmp_path / f"{n}.ts", 250, fps=25, first=250 * n, b_frames=b_frames) for n in range(2))
    shift_ts(first, 90_000 * 7200)
    shift_ts(second, 90_000 * 7200 + ticks)
    segments = decode(join(tmp_path / "joined.ts", [first, second]))
    assert numbers(segments) == list(range(0, 500, 25))
    assert times(segments) == pytest.approx(np.arange(20), abs=0.05)
    assert segments[-1].duration_s == pytest.approx(20, abs=0.2)


def shift_ts(path, ticks):
    """Add to every PTS, DTS and PCR of a transport stream."""
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), 188):
        payload = place + 4
        if data[place + 3] & 0x20:  # an adaptation field, perhaps with a PCR
            if data[place + 4] >= 7 and data[place + 5] & 0x10:
                base = int.from_bytes(data[place + 6 : place + 11]) >> 7
                rest = int.from_bytes(data[place + 6 : place + 12]) & 0x7FFF
                data[place + 6 : place + 12] = (((base + ticks) % 2**33) << 15 | rest).to_bytes(6)
            payload += 1 + data[place + 4]
        is_video = data[payload : payload + 3] == b"\0\0\1" and 0xE0 <= data[payload + 3] < 0xF0
        if data[place + 1] & 0x40 and is_video:
            for number in range({2: 1, 3: 2}[data[payload + 7] >> 6]):
                shift_stamp(data, payload + 9 + 5 * number, ticks)
    path.write_bytes(data)


def shift_stamp(data, place, ticks):
    value = (data[place] >> 1 & 7) << 30 | (data[place + 1] << 7 | data[place + 2] >> 1) << 15
    value = (value | data[place + 3] << 7 | data[place + 4] >> 1) + ticks
    data[place] = data[place] & 0xF1 | (value >> 30 & 7) << 1
    data[place + 1], data[place + 2] = value >> 22 & 255, (value >> 15 & 127) << 1 | 1
    data[place + 3], data[place + 4] = value >> 7 & 255, (value & 127) << 1 | 1


@pytest.mark.parametrize("suffix", ["mkv", "ts", "flv"])
@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("place", [0, 100, 251, 470])
def test_one_wild_time_is_replaced(tmp_path, suffix, b_frames, place):
    source = render(tmp_path / "v.ts", 500, fps=25, b_frames=b_frames)
    path = tmp_path / f"wild.{suffix}"
    if suffix == "ts":
        wild_ts(source, path, place, 40_000 * 90_000)
    else:
        wild_block(render(tmp_path / f"v.{suffix}", 500, fps=25, b_frames=b_frames), path, place)
    segments = decode(path)
    assert numbers(segments) == list(range(0, 500, 25))
    assert times(segments) == pytest.approx(np.arange(20), abs=0.1)
    assert segments[-1].duration_s == pytest.approx(20, abs=0.2)
    assert segments[-1].warnings == ("wild_times",)
    assert segments[-1].decoded_share == 1.0


def wild_ts(source, path, place, ticks):
    """Give one picture of a transport stream another PTS, and DTS where it has one."""
    data = bytearray(source.read_bytes())
    starts = [
        n
        for n in range(0, len(data), 188)
        if data[n + 1] & 0x40 and int.from_bytes(data[n + 1 : n + 3]) & 0x1FFF == 256
    ]
    begin = starts[place]
    payload = begin + 4 + (1 + data[begin + 4] if data[begin + 3] & 0x20 else 0)
    for number in range({2: 1, 3: 2}[data[payload + 7] >> 6]):
        shift_stamp(data, payload + 9 + 5 * number, ticks)
    path.write_bytes(data)


def wild_block(source, path, place):
    """Give one picture of an mkv or flv another time."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][place]
    if source.suffix == ".flv":  # 11 bytes of tag head: time in bytes 4 to 7, the highest byte last
        data[packet.pos + 4 : packet.pos + 8] = b"\x0f\0\0\x20"
    else:  # a SimpleBlock: track, then 16 bits of time since its cluster
        block = data.index(bytes(packet), packet.pos) - 4
        data[block + 1 : block + 3] = struct.pack(">h", 32767)
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_video_that_starts_behind_its_sound_is_shown_late(tmp_path, suffix):
    """The first picture comes 20 s after the sound; an annotator's player shows picture n at 20 + n / 10 s."""
    path = render(
        tmp_path / f"v.{suffix}", 100, times=[20_000 + 100 * n for n in range(100)], b_frames=0, sound_s=(0, 30)
    )
    (segment,) = decode(path)
    assert segment.timestamps_s == pytest.approx(20 + np.array(numbers([segment])) / 10, abs=0.05)
    assert numbers([segment]) == list(range(0, 100, 10))
    assert segment.start_s == pytest.approx(20, abs=0.05)
    assert segment.duration_s == pytest.approx(30, abs=0.1)
    assert segment.decoded_share == 1.0


def test_frames_at_a_player_s_times_can_be_asked_for(tmp_path):
    path = render(tmp_path / "v.mp4", 100, times=[5_500 + 100 * n for n in range(100)], b_frames=0, sound_s=(0, 30))
    asked = decode(path, Sampling(fps=0.5, segment_frames=1, from_first_frame=False), skip=[0, 1, 2, 5, 6, 7])
    assert [segment.index for segment in asked] == [3, 4]
    assert times(asked) == pytest.approx([6.0, 8.0])
    assert numbers(asked) == [5, 25]


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_pauses_of_a_screen_recording_are_no_restarts(tmp_path, suffix):
    """Three bursts of 20 frames, 70 s apart. Matroska has no decoding times: libav makes them up."""
    shown = [40 * n + 70_000 * (n // 20) for n in range(60)]
    (segment,) = decode(render(tmp_path / f"v.{suffix}", 60, times=shown, b_frames=2))
    assert segment.warnings == ()
    assert numbers([segment]) == [0, 19, 25, 39, 50]
    assert 1000 * segment.timestamps_s == pytest.approx([shown[n] for n in numbers([segment])], abs=1)


def test_a_steady_clock_is_left_alone():
    """Long pauses, frames that are shown in another order, decoding times that are wrong alone: no restart."""
    pts = np.array([0, 3, 1, 2, 6, 4, 5, 90_006, 90_003, 90_004, 90_005, 190_000, 190_001]) * 40
    dts = np.sort(pts) - 80
    for wrong_dts in (dts, np.where(np.arange(13) == 9, 0, dts), np.where(np.arange(13) == 9, 10**9, dts)):
        clock = steady_clock(pts, wrong_dts, np.ones(13, bool), 1e-3, may_jump=False)
        assert np.array_equal(clock.pts_P, pts)
        assert not clock.is_corrected


def test_nothing_and_one_packet_have_a_clock():
    for number in (1, 2):
        times_P = np.arange(number) * 7
        clock = steady_clock(times_P, times_P, np.zeros(number, bool), 1e-3, may_jump=True)
        assert np.array_equal(clock.pts_P, times_P)

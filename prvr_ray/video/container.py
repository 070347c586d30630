"""One video file opened with PyAV: its main stream, its packets and its decoder. Only local data is ever opened."""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import av

from prvr_ray.video.errors import VideoError
from prvr_ray.video.frames import check_pixels

# Containers and single pictures. Playlists, concat scripts and other formats that name further files are excluded.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "mpegts", "mpeg", "mpegvideo", "ogg", "asf", "ivf",
    "mxf", "nut", "dv", "rm", "gif", "h264", "hevc", "obu", "m4v", "jpeg_pipe", "png_pipe",
)  # fmt: skip
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)}
_PICTURES = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")  # codecs of cover art
_MAX_DEMUX_ERRORS = 100  # damaged places that are skipped in one file


# Formats whose header states a length. Of the others libav reports what it has seen or guessed.
_WITH_LENGTH = {"mov", "matroska", "avi", "flv", "asf", "mxf"}
_WITH_LENGTH_OF_EACH_STREAM = {"mov", "avi", "mxf"}  # elsewhere libav gives every stream the container's length
_TAGGED_DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)")


@dataclass(frozen=True)
class Promise:
    """Seconds of video that a file's header promises, 0 for no promise. It may speak of the longest stream only."""

    video_s: float
    is_of_longest_stream: bool = False


@dataclass(frozen=True)
class Limits:
    """How large a picture and how long a video may be; anything beyond is `too_large`."""

    max_pixels: int = 8192 * 8192
    max_duration_s: float = 48 * 3600.0


class VideoFile:
    """An open file and its main video stream.

    clock_s: seconds of one tick of its timestamps. start_s: of its earliest stream, None if unknown.
    is_transport_stream: MPEG streams, whose clock may leap where recordings were joined.

    Raises:
        VideoError: decode (no known container, no decoder), no_video_stream, too_large.
    """

    def __init__(self, path: str, limits: Limits):
        self._path, self.limits = "file:" + os.path.abspath(path), limits
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.container.close()

    def reopen(self) -> None:
        """Go back to the first packet: unlike a seek, this works for every container."""
        self.container.close()
        self._open()

    def demux(self) -> Iterator[av.Packet]:
        """The stream's packets, skipping damaged places. Empty packets are left out: they would flush the decoder."""
        return self._demux([self.stream])

    def _demux(self, streams: Sequence[av.stream.Stream]) -> Iterator[av.Packet]:
        for _ in range(_MAX_DEMUX_ERRORS if streams else 0):
            try:
                yield from (packet for packet in self.container.demux(list(streams)) if packet.size)
                return
            except MemoryError:
                raise
            except av.FFmpegError:
                continue

    def demux_from(self, pts: int) -> Iterator[av.Packet]:
        """The packets after a seek to a time; none if the container cannot seek."""
        try:
            self.container.seek(pts, stream=self.stream)
        except MemoryError:
            raise
        except av.FFmpegError:
            return
        yield from self.demux()

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """The frames that decoding one packet returns, none if it is damaged; None drains the decoder."""
        try:
            return self.stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except (av.FFmpegError, UnicodeError):
            return []

    def decode_all(self) -> Iterator[av.VideoFrame]:
        """All frames from the current packet to the end, in output order."""
        for packet in self.demux():
            yield from self.decode(packet)
        yield from self.decode(None)

    def promise(self, first_s: float) -> "Promise":
        """What the header says about the length of the video.

        Args:
            first_s: of the first frame, on the container's clock.
        """
        names = set(self.container.format.name.split(","))
        if not names & _WITH_LENGTH:
            return Promise(0.0)  # libav estimates the length from the file's end or its bit rate
        if "avi" in names and self.stream.frames:
            return Promise(self.stream.frames * self.frame_s())  # the duration of an AVI that was cut is libav's guess
        if names & _WITH_LENGTH_OF_EACH_STREAM and self.stream.duration is not None:
            return Promise(self.stream.duration * self.clock_s)
        if end_s := _tagged_end_s(self.stream.metadata):
            return Promise(end_s - max(first_s, 0.0))
        end_s = (self.container.duration or 0) / av.time_base
        return Promise(end_s - max(first_s, 0.0), is_of_longest_stream=len(self.container.streams) > 1)

    def others_end_s(self, beat: Callable[[], None]) -> float:
        """Read the packets of the streams beside the video; returns when the last one ends, -inf without any."""
        self.reopen()
        others = [stream for stream in self.container.streams if stream.index != self.stream.index]
        end_s = -math.inf
        for packet in self._demux(others):
            beat()
            if packet.pts is not None and packet.time_base is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return end_s

    def frame_s(self) -> float:
        """The time between two frames at the stream's average rate; 1/25 s if it is unknown."""
        return 1 / float(self.stream.average_rate or 25)

    def _open(self) -> None:
        try:
            self.container = av.open(self._path, metadata_errors="replace", container_options=_OPTIONS)
        except MemoryError:
            raise
        except (av.FFmpegError, UnicodeError) as error:
            raise VideoError("decode", f"does not open: {_reason(error)}") from error
        self.stream = _main_stream(self.container)
        assert self.stream.time_base is not None
        self.clock_s = float(self.stream.time_base)
        start = self.container.start_time
        self.start_s = None if start is None else start / av.time_base
        self.is_transport_stream = self.container.format.name in ("mpegts", "mpeg")
        context = self.stream.codec_context
        check_pixels(context.width, context.height, self.limits.max_pixels)
        context.options = {"max_pixels": str(self.limits.max_pixels)}
        context.thread_count = 1  # one decoder per CPU is faster, and damaged files hang with several threads


def _tagged_end_s(metadata: Mapping[str, str]) -> float:
    """A Matroska track's own end, which muxers write as a tag; 0 where there is none."""
    for name, value in metadata.items():
        if name.startswith("DURATION") and (match := _TAGGED_DURATION.match(value)):
            hours, minutes, seconds = match.groups()
            return 3600.0 * int(hours) + 60 * int(minutes) + float(seconds)
    return 0.0


def _main_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The best video stream that is not cover art."""
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        raise VideoError("no_video_stream", "the file has no video stream")
    best = container.streams.best("video")
    stream = next((stream for stream in streams if best and stream.index == best.index), streams[0])
    if stream.codec_context is None:
        raise VideoError("decode", "there is no decoder for the video stream")
    return stream


def _is_cover(stream: av.VideoStream) -> bool:
    # The flag alone will not do: PyAV 18.1 reports arbitrary flags for some webm and mkv streams.
    is_attached = bool(stream.disposition & av.stream.Disposition.attached_pic)
    return is_attached and stream.codec_context is not None and stream.codec_context.name in _PICTURES


def _reason(error: BaseException) -> str:
    """An error in one line, without the file's path, which the row holds already."""
    return str(error).partition(": '")[0][:300]

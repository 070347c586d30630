"""One video file opened with PyAV: its main stream, its packets, its decoder. Nothing but local data is ever opened."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import av

from prvr_ray.corpus.errors import VideoError
from prvr_ray.corpus.frames import check_pixels

# Containers and bare pictures, all of them local data: no playlists, no concat scripts, nothing that names other files.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "mpegts", "mpeg", "mpegvideo", "ogg", "asf", "ivf",
    "mxf", "nut", "dv", "rm", "gif", "h264", "hevc", "obu", "m4v", "jpeg_pipe", "png_pipe",
)  # fmt: skip
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)}
_PICTURES = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")  # codecs of cover art
_MAX_DEMUX_ERRORS = 100  # damaged places that are stepped over in one file


@dataclass(frozen=True)
class Limits:
    """What a file may ask for before it counts as too large."""

    max_pixels: int = 8192 * 8192
    max_duration_s: float = 48 * 3600.0


class VideoFile:
    """An open file and its main video stream. clock_s: seconds of one tick of its timestamps.

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
        """The stream's packets, stepping over damaged places; empty ones, which would end decoding, are left out."""
        for _ in range(_MAX_DEMUX_ERRORS):
            try:
                yield from (packet for packet in self.container.demux(self.stream) if packet.size)
                return
            except MemoryError:
                raise
            except av.FFmpegError:
                continue

    def demux_from(self, pts: int) -> Iterator[av.Packet]:
        """The packets after a seek to a time; none where the container cannot seek."""
        try:
            self.container.seek(pts, stream=self.stream)
        except MemoryError:
            raise
        except av.FFmpegError:
            return
        yield from self.demux()

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """The frames that come out for one packet, none if it is damaged; None empties the decoder."""
        try:
            return self.stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except (av.FFmpegError, UnicodeError):
            return []

    def decode_all(self) -> Iterator[av.VideoFrame]:
        """All frames from the current packet to the end, as they come."""
        for packet in self.demux():
            yield from self.decode(packet)
        yield from self.decode(None)

    def promised_s(self) -> float:
        """What the header says about the stream's length; 0 if it says nothing."""
        if self.container.format.name == "avi" and self.stream.frames:
            return self.stream.frames * self.frame_s()  # the duration of an AVI that was cut is libav's guess
        if self.stream.duration is not None:
            return self.stream.duration * self.clock_s
        return (self.container.duration or 0) / av.time_base

    def frame_s(self) -> float:
        """The usual time between two frames."""
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
        context = self.stream.codec_context
        check_pixels(context.width, context.height, self.limits.max_pixels)
        context.options = {"max_pixels": str(self.limits.max_pixels)}
        context.thread_count = 1  # one decoder per CPU is faster, and damaged files hang with several threads


def _main_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The best video stream that is no cover art."""
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
    """An error in one line, without the file's path, which stands in the row already."""
    return str(error).partition(": '")[0][:300]

"""Decodes the wanted frames of one local video file, segment by segment, into encoders' inputs.

A file may be anything: this module runs inside the child process of `prvr_ray.corpus.decoder`, which bounds its time
and memory. What the packets say is read by `prvr_ray.corpus.packets`; pixels are shaped by `prvr_ray.corpus.frames`.

Shapes: F frames, H and W pixels.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import av
import numpy as np

from prvr_ray.corpus.container import Limits, VideoFile
from prvr_ray.corpus.errors import VideoError
from prvr_ray.corpus.frames import FrameConverter, FrameSpec
from prvr_ray.corpus.packets import RESTART_PACKETS, Sampling, SegmentPlan, Survey, plan_segments, survey

_SEEK_PACKETS = 32  # a gap longer than this is crossed by seeking; reading on costs microseconds a packet
_TRUNCATED_BELOW = 0.95


@dataclass(frozen=True)
class Segment:
    """The frames of one segment.

    timestamps_s: (F,) float64, presentation times since the stream's start of the frames really used.
    frames: one (F, 3, H, W) uint8 array for each frame spec.
    start_s: of the stream in its container. duration_s: of the whole stream.
    decoded_share: of this segment's frames, times what the file holds of its promised length.
    """

    index: int
    is_last: bool
    timestamps_s: np.ndarray
    frames: list[np.ndarray]
    start_s: float
    duration_s: float
    decoded_share: float
    warnings: tuple[str, ...]


def read_segments(
    path: str,
    sampling: Sampling,
    specs: Sequence[FrameSpec],
    limits: Limits,
    skip: Collection[int] = (),
    beat: Callable[[], None] = lambda: None,
    restart_packets: float = RESTART_PACKETS,
) -> Iterator[Segment]:
    """Decode a file, each frame once, whatever the number of encoders.

    Args:
        path: a local file.
        specs: the inputs of one or several encoders.
        skip: numbers of segments that are not wanted.
        beat: called while the work goes on.
        restart_packets: see `plan_segments`; it changes the cost, never the frames.

    Yields:
        The segments that are not skipped, in order.

    Raises:
        VideoError: the file, or the segment after those that came, cannot be used.
    """
    with VideoFile(path, limits) as file:
        found = survey(file, beat)
        source = _Source(file, found, beat)
        converter = FrameConverter(file.stream.sample_aspect_ratio, limits.max_pixels)
        for plan in plan_segments(found, sampling, restart_packets):
            if plan.index not in skip:
                yield _segment(plan, found, source, converter, specs)


class _Source:
    """The place among a file's packets, and the frames that come from it."""

    def __init__(self, file: VideoFile, found: Survey, beat: Callable[[], None]):
        self._file, self._survey, self._beat = file, found, beat
        self._by_pts = np.argsort(found.pts, kind="stable")
        self._packets: Iterator[av.Packet] = iter(())
        self._position = len(found.pts)  # the survey has read to the end
        self._can_seek = True
        self._in_order: Iterator[tuple[float, av.VideoFrame]] | None = None

    def frames(self, plan: SegmentPlan) -> Iterator[tuple[float, av.VideoFrame]]:
        """Times and frames of the packets that the plan names, and of those that these depend on."""
        if self._survey.by_decoding:
            yield from self._all_in_order()
            return
        if self._can_seek:  # a segment begins the same way, whatever came before it
            self._position = len(self._survey.pts)
        for first, last in plan.runs:
            yield from self._run(first, last)

    def _run(self, first: int, last: int) -> Iterator[tuple[float, av.VideoFrame]]:
        try:
            self._go_to(first)
            while self._position <= last and (packet := next(self._packets, None)) is not None:
                self._beat()
                self._position += 1
                yield from map(self._timed, self._file.decode(packet))
            yield from map(self._timed, self._file.decode(None))
        finally:
            self._file.stream.codec_context.flush_buffers()

    def _timed(self, frame: av.VideoFrame) -> tuple[float, av.VideoFrame]:
        return ((frame.pts or 0) - self._survey.first_pts) * self._file.clock_s, frame

    def _go_to(self, first: int) -> None:
        gap = first - self._position
        if gap < 0 or (gap > _SEEK_PACKETS and self._can_seek):
            self._can_seek = self._can_seek and self._seek(first)
            if not self._can_seek and self._position > first:
                self._file.reopen()
                self._packets, self._position = self._file.demux(), 0
        for _ in range(first - self._position):
            self._beat()
            next(self._packets, None)
        self._position = first

    def _seek(self, first: int) -> bool:
        """Land at a packet or before it. Where it lands is read from the packet that comes, not taken on trust."""
        self._position = len(self._survey.pts)
        for target in (first, max(0, first - _SEEK_PACKETS)):
            packets = self._file.demux_from(int(self._survey.pts[target]))
            packet = next(packets, None)
            landed = self._number(packet)
            if packet is not None and landed is not None and landed <= first:
                self._packets, self._position = chain([packet], packets), landed
                return True
        return False

    def _number(self, packet: av.Packet | None) -> int | None:
        if packet is None or packet.pts is None:
            return None
        pts = self._survey.pts
        place = int(np.searchsorted(pts, packet.pts, sorter=self._by_pts))
        return int(self._by_pts[place]) if place < len(pts) and pts[self._by_pts[place]] == packet.pts else None

    def _all_in_order(self) -> Iterator[tuple[float, av.VideoFrame]]:
        if self._in_order is None:
            self._file.reopen()
            self._in_order = zip(self._survey.times_s.tolist(), self._file.decode_all(), strict=False)
        for item in self._in_order:
            self._beat()
            yield item


def _segment(
    plan: SegmentPlan, found: Survey, source: _Source, converter: FrameConverter, specs: Sequence[FrameSpec]
) -> Segment:
    times_s, frames = [], [np.empty((len(plan.times_s), 3, *spec.image_size), np.uint8) for spec in specs]
    for row, (time_s, frame) in enumerate(_pick(source.frames(plan), plan)):
        times_s.append(time_s)
        picture = converter.picture(frame)
        for frames_F3HW, spec in zip(frames, specs, strict=True):
            frames_F3HW[row] = converter.fit(picture, spec)
    if not times_s and plan.index == 0:
        raise VideoError("decode", "no frame can be decoded")
    share = found.share * (len(times_s) / len(plan.times_s) if len(plan.times_s) else 1.0)
    return Segment(
        plan.index,
        plan.is_last,
        np.array(times_s),
        [frames_F3HW[: len(times_s)] for frames_F3HW in frames],
        found.start_s,
        found.duration_s,
        share,
        ("truncated",) if share < _TRUNCATED_BELOW else (),
    )


def _pick(frames: Iterator[tuple[float, av.VideoFrame]], plan: SegmentPlan) -> Iterator[tuple[float, av.VideoFrame]]:
    """The frame of each wanted time; if it is damaged, the last one since the wanted frame before it, if any."""
    wanted = deque(plan.times_s.tolist())
    latest, stand_in = plan.after_s, None
    for time_s, frame in frames:
        if time_s <= latest:
            continue  # decoded for the sake of others, or a clock that steps back
        latest = time_s
        while wanted and wanted[0] < time_s:
            wanted.popleft()
            if stand_in:
                yield stand_in
            stand_in = None
        stand_in = time_s, frame
        if wanted and wanted[0] == time_s:
            wanted.popleft()
            yield stand_in
            stand_in = None
        if not wanted:
            return
    if wanted and stand_in:
        yield stand_in

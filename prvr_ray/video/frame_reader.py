"""The decoder's position in a file: the packets it has been fed, and the decoded frames not yet taken.

Seeking is an optimisation that is checked. A keyframe flag may be wrong (every sample flagged, or H.264 recovery points
with intra refresh), so the first frame after a seek must be the packet's own, a keyframe and undamaged. If it is not,
the rest of the file is decoded without another seek.
"""

from collections import deque
from collections.abc import Iterator
from itertools import chain

import av
import numpy as np

from prvr_ray.video.container import VideoFile
from prvr_ray.video.packets import Beat, SegmentPlan, Survey

TimedFrame = tuple[float, av.VideoFrame]  # seconds since the stream's first frame

_SEEK_PACKETS = 32  # a gap longer than this is crossed by seeking; reading on costs microseconds a packet


class _UncleanEntryError(Exception):
    """Decoding does not start at the packet where the container says that it does."""


class FrameReader:
    """Gives the frames of one segment after another and keeps the decoder's state where the next segment continues."""

    def __init__(self, file: VideoFile, found: Survey, beat: Beat):
        self._file, self._survey, self._beat = file, found, beat
        self._by_pts = np.argsort(found.pts, kind="stable")
        self._packet_s = found.duration_s / len(found.pts)
        self._packets: Iterator[av.Packet] = iter(())
        self._position = len(found.pts)  # number of the next packet; the survey has read to the end
        self._can_seek = found.can_seek
        self._is_decoding = False  # the decoder has been fed every packet from a clean entry to the position
        self._entry: int | None = None  # the keyframe that decoding began with, until its frame has been checked
        self._last_clean_entry = 0
        self._is_sequential = False
        self._waiting: deque[TimedFrame] = deque()
        self._in_order: Iterator[TimedFrame] | None = None

    def frames(self, plan: SegmentPlan) -> Iterator[TimedFrame]:
        """Times and frames of the packets that a plan names, and of those that these depend on.

        The caller may stop at any frame, and give back one that belongs to the next segment.
        """
        if self._survey.by_decoding:
            yield from self._all_in_order()
            return
        if not self._is_sequential:
            try:
                for number, (first, last) in enumerate(plan.ranges, 1):
                    is_continued = plan.is_continued and number == len(plan.ranges)
                    yield from self._decode(first, None if is_continued else last)
                return
            except _UncleanEntryError:
                self._is_sequential = True
                self._enter(self._last_clean_entry)
                self._entry = None  # it was checked before, or is the first packet, before which there is nothing
        yield from self._decode(self._position, None)

    def give_back(self, item: TimedFrame) -> None:
        """Put a frame back: it is the next one that comes."""
        self._waiting.appendleft(item)

    def _decode(self, first: int, last: int | None) -> Iterator[TimedFrame]:
        """Decode from one packet to another and drain the decoder; None for `last`: to the end of the file."""
        if not (self._is_decoding and first <= self._position):
            self._enter(first)
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            packet = next(self._packets, None) if last is None or self._position <= last else None
            if packet is None:
                break
            self._beat(self._packet_s)
            self._waiting.extend(self._checked(self._fed(packet)))
        self._waiting.extend(self._checked(map(self._timed, self._file.decode(None))))
        self._is_decoding = False
        if self._entry is not None:
            raise _UncleanEntryError
        while self._waiting:
            yield self._waiting.popleft()

    def _fed(self, packet: av.Packet) -> Iterator[TimedFrame]:
        """Decode a packet. It is stamped with its number, so that a frame names its packet whatever the clock says."""
        packet.pts, packet.dts = self._position, None
        self._position += 1
        return map(self._timed, self._file.decode(packet))

    def _timed(self, frame: av.VideoFrame) -> TimedFrame:
        return float(self._survey.times_s[frame.pts or 0]), frame

    def _checked(self, frames: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
        """Drop what comes before the entry's frame, which lacks its references, and check that one."""
        for time_s, frame in frames:
            if self._entry is not None:
                entry_s = self._survey.times_s[self._entry]
                if time_s < entry_s:
                    continue
                if time_s > entry_s or not frame.key_frame or frame.is_corrupt:
                    raise _UncleanEntryError
                self._last_clean_entry, self._entry = self._entry, None
            yield time_s, frame

    def _enter(self, first: int) -> None:
        """Flush the decoder and start at a packet."""
        self._file.stream.codec_context.flush_buffers()
        self._waiting.clear()
        self._go_to(first)
        self._is_decoding = True
        self._entry = first or None  # nothing is missing before the first packet

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
        """Seek to a packet or a few before it. The packet that the seek returns tells where it landed."""
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

    def _all_in_order(self) -> Iterator[TimedFrame]:
        if self._in_order is None:
            self._file.reopen()
            self._in_order = zip(self._survey.times_s.tolist(), self._file.decode_all(), strict=False)
        while self._waiting:
            yield self._waiting.popleft()
        for item in self._in_order:
            self._beat(self._packet_s)
            yield item

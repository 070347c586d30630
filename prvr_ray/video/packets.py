"""Reads a video file's packets without decoding them, and chooses the packets that give the wanted frames.

Demuxing costs a few microseconds per packet, decoding a hundred times as much. So a first pass reads presentation
times, keyframes and length. They determine the wanted frames, their segments and, for each segment, the ranges of
packets to decode. Frames are therefore the same whether the packets between them are decoded or skipped.

Shapes: P packets of the stream in decoding order.
"""

import math
from array import array
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Protocol

import av
import numpy as np

from prvr_ray.video.clock import Clock, steady_clock
from prvr_ray.video.container import VideoFile
from prvr_ray.video.errors import VideoError

_ROUNDING_S = 1e-3  # containers with a millisecond clock round a frame's time by up to 0.5 ms
RESTART_PACKETS = 4.0  # decoding this many costs as much as draining the decoder and seeking
_LONGEST_DELAY_S = 30 * 3600.0  # of the video behind its sound; a longer delay is a wrong timestamp


class Beat(Protocol):
    """Heartbeat, called during the work with the seconds of video decoded since the last call."""

    def __call__(self, decoded_s: float = 0.0) -> None: ...


@dataclass(frozen=True)
class Sampling:
    """Which frames are wanted: those shown at k/fps seconds, k = 0, 1, ..., or the last keyframe before each time.

    A frame shown at several of these times is taken once. A segment spans segment_frames of these times.

    from_first_frame: k counts from the stream's first frame; otherwise from the player's zero, and times before the
    first frame have none.
    """

    fps: float = 1.0
    keyframes_only: bool = False
    segment_frames: int = 1024
    from_first_frame: bool = True


@dataclass(frozen=True)
class Survey:
    """The packets of one video stream, in decoding order.

    times_s: (P,) presentation times since the stream's first frame, corrected where the container's clock was wrong.
    pts: (P,) the container's own times, in ticks, by which it seeks.
    is_key, is_shown: (P,) keyframes, as the container flags them; packets that give a picture of their own.
    start_s: of the first frame on the clock that a player shows, where the container's start is zero.
    duration_s: from the first frame to the end of the last one.
    fraction: how much of the stream's promised length is in the file.
    by_decoding: the container's times are unusable, so the frames were decoded and counted: P frames as they come.
    can_seek: whether the container's times lead back to the packets.
    """

    times_s: np.ndarray
    pts: np.ndarray
    is_key: np.ndarray
    is_shown: np.ndarray
    start_s: float
    duration_s: float
    fraction: float
    by_decoding: bool
    can_seek: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class SegmentPlan:
    """One segment: the times of its frames, increasing, and the ranges of packets, first to last, to decode.

    after_s: time of the wanted frame before the segment: no earlier frame may stand in for a damaged one.
    is_continued: the next planned segment needs packets that follow at once, so the decoder keeps its state.
    """

    index: int
    is_last: bool
    times_s: np.ndarray
    after_s: float
    ranges: list[tuple[int, int]]
    is_continued: bool = False


def survey(file: VideoFile, beat: Beat) -> Survey:
    """Read a file's packets once, to its end.

    Args:
        beat: heartbeat.

    Raises:
        VideoError: empty (no packet), decode (no frame where frames must be decoded), too_large (too long).
    """
    packets = _Packets()
    for packet in file.demux():
        beat()
        packets.add(packet)
    if not any(packets.is_shown):
        raise VideoError("empty", "the video stream holds no pictures")
    is_shown = np.array(packets.is_shown, bool)
    if not packets.is_timed:
        return _survey_by_decoding(file, beat)
    pts_P = np.array(packets.pts)
    clock = steady_clock(
        pts_P, np.array(packets.dts), np.array(packets.has_dts, bool), file.clock_s, file.is_transport_stream
    )
    if _is_misleading(clock.pts_P, bool(file.stream.codec_context.has_b_frames)):
        return _survey_by_decoding(file, beat)
    return _survey_of(file, pts_P, clock, np.array(packets.durations), np.array(packets.is_key, bool), is_shown, beat)


def plan_segments(
    survey: Survey, sampling: Sampling, skip: Collection[int] = (), restart_packets: float = RESTART_PACKETS
) -> list[SegmentPlan]:
    """Choose the wanted frames, cut them into segments, and find the packets that each segment needs.

    Args:
        skip: numbers of segments that are not wanted.
        restart_packets: a gap of unwanted packets is skipped when it is longer than this; 0 always seeks, infinity
            decodes sequentially. It changes the cost, never the frames.
    """
    times_s, slots, packets = _wanted(survey, sampling)
    firsts = _keyframes_before(survey, packets)
    segment_of = slots // sampling.segment_frames
    last = int(segment_of[-1])
    plans: list[SegmentPlan] = []
    for index in range(last + 1):
        if index in skip:
            continue
        begin, end = np.searchsorted(segment_of, [index, index + 1])
        ranges = [] if survey.by_decoding else _ranges(packets[begin:end], firsts[begin:end], restart_packets)
        after_s = float(times_s[begin - 1]) if begin else -np.inf
        plans.append(SegmentPlan(index, index == last, times_s[begin:end], after_s, ranges))
    return _with_continuations(plans, restart_packets)


def _with_continuations(plans: list[SegmentPlan], restart_packets: float) -> list[SegmentPlan]:
    """Mark each segment whose last packet the next planned segment follows closely."""
    marked: list[SegmentPlan] = []
    next_first = math.inf
    for plan in reversed(plans):
        is_continued = bool(plan.ranges) and next_first - plan.ranges[-1][1] - 1 <= restart_packets
        marked.append(replace(plan, is_continued=is_continued))
        next_first = plan.ranges[0][0] if plan.ranges else next_first
    return marked[::-1]


class _Packets:
    """The fields kept of each packet of a file."""

    def __init__(self) -> None:
        self.pts, self.dts, self.durations = array("q"), array("q"), array("q")
        self.has_dts, self.is_key, self.is_shown = array("b"), array("b"), array("b")
        self.is_timed = True

    def add(self, packet: av.Packet) -> None:
        self.is_timed &= packet.pts is not None
        self.pts.append(packet.pts or 0)
        self.dts.append(packet.dts or 0)
        self.has_dts.append(packet.dts is not None)
        self.durations.append(packet.duration or 0)
        self.is_key.append(packet.is_keyframe)
        self.is_shown.append(not packet.is_discard)


def _is_misleading(pts_P: np.ndarray, reorders: bool) -> bool:
    """Whether packet times are not the frames': repeated, or in decoding order although the codec reorders (AVI)."""
    steps = np.diff(pts_P)
    return len(np.unique(pts_P)) < len(pts_P) or (reorders and len(pts_P) > 2 and bool((steps > 0).all()))


def _survey_by_decoding(file: VideoFile, beat: Beat) -> Survey:
    """Decode the whole file for its frames' times. They are sorted: the n-th decoded frame has the n-th time."""
    file.reopen()
    pts, is_key = array("q"), array("b")
    step = round(file.frame_s() / file.clock_s)
    for frame in file.decode_all():
        beat(file.frame_s())
        pts.append(frame.pts if frame.pts is not None else (pts[-1] + step if pts else 0))
        is_key.append(frame.key_frame)
    if not pts:
        raise VideoError("decode", "no frame can be decoded")
    pts_P, everywhere = np.array(pts), np.ones(len(pts), bool)
    clock = steady_clock(pts_P, pts_P, everywhere, file.clock_s, file.is_transport_stream)
    clock = replace(clock, pts_P=np.sort(clock.pts_P))
    no_durations = np.zeros(len(pts), np.int64)
    return _survey_of(file, pts_P, clock, no_durations, np.array(is_key, bool), everywhere, beat, by_decoding=True)


def _survey_of(
    file: VideoFile,
    pts_P: np.ndarray,
    clock: Clock,
    durations_P: np.ndarray,
    is_key: np.ndarray,
    is_shown: np.ndarray,
    beat: Beat,
    by_decoding: bool = False,
) -> Survey:
    tick_s = file.clock_s
    frame_s = clock.step * tick_s if clock.is_corrected else file.frame_s()
    first = int(clock.pts_P[is_shown].min())
    times_s = (clock.pts_P - first) * tick_s
    has_duration = durations_P > (np.inf if clock.is_corrected else 0)  # a wild time may have given a wild duration
    ends_s = times_s + np.where(has_duration, durations_P * tick_s, frame_s)
    duration_s = float(ends_s[is_shown].max())
    limit_s = file.limits.max_duration_s
    if duration_s > limit_s:
        raise VideoError("too_large", f"{duration_s:.0f} s long; ingest.max_duration_s is {limit_s:.0f}")
    fraction = 1.0 if clock.is_corrected else _fraction(file, first * tick_s, duration_s, frame_s, beat)
    warnings = [
        name for name, number in (("clock_restarts", clock.num_restarts), ("wild_times", clock.num_wild)) if number
    ]
    return Survey(
        times_s,
        pts_P,
        is_key,
        is_shown,
        _start_s(file, first * tick_s),
        duration_s,
        fraction,
        by_decoding,
        can_seek=not clock.is_corrected,
        warnings=tuple(warnings),
    )


def _start_s(file: VideoFile, first_s: float) -> float:
    """When a player shows the first frame: it starts its clock with the earliest stream of the container.

    Without other streams that is the video, whatever the header says: AVI counts from the first decoding time.
    """
    delay_s = first_s - file.start_s if file.start_s is not None and len(file.container.streams) > 1 else 0.0
    return delay_s if 0 < delay_s <= _LONGEST_DELAY_S else 0.0


def _fraction(file: VideoFile, first_s: float, duration_s: float, frame_s: float, beat: Beat) -> float:
    """The fraction of the promised length that is in the file; 1 if only rounding is missing or sound goes on."""
    promise = file.promise(first_s)
    tolerated_s = max(2 * frame_s, min(1.0, 0.1 * promise.video_s))
    if promise.video_s - duration_s <= tolerated_s:
        return 1.0
    if promise.is_of_longest_stream and file.others_end_s(beat) - first_s >= promise.video_s - tolerated_s:
        return 1.0
    return duration_s / promise.video_s


def _wanted(survey: Survey, sampling: Sampling) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times of the wanted frames, increasing; the first point of the grid that shows each; the packet of each."""
    is_candidate = survey.is_shown & survey.is_key if sampling.keyframes_only else survey.is_shown
    if not is_candidate.any():
        is_candidate = survey.is_shown
    packets = np.flatnonzero(is_candidate)
    packets = packets[np.argsort(survey.times_s[packets], kind="stable")]
    times_s = survey.times_s[packets]
    last_s = survey.times_s[survey.is_shown].max()
    origin_s = 0.0 if sampling.from_first_frame else survey.start_s
    grid_s = np.arange(int((last_s + origin_s + _ROUNDING_S) * sampling.fps) + 1) / sampling.fps - origin_s
    shown = np.searchsorted(times_s, grid_s + _ROUNDING_S, side="right") - 1
    frames, slots = np.unique(shown, return_index=True)
    kept = frames >= 0  # before the first keyframe nothing is shown
    return times_s[frames[kept]], slots[kept], packets[frames[kept]]


def _ranges(packets: np.ndarray, firsts: np.ndarray, restart_packets: float) -> list[tuple[int, int]]:
    """First and last packet of each range to decode, from a keyframe to the last wanted packet."""
    ranges: list[tuple[int, int]] = []
    for first, packet in sorted(zip(firsts.tolist(), packets.tolist(), strict=True)):
        if ranges and first - ranges[-1][1] - 1 <= restart_packets:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], packet))
        else:
            ranges.append((first, packet))
    return ranges


def _keyframes_before(survey: Survey, packets: np.ndarray) -> np.ndarray:
    """For each packet the keyframe to start decoding at: the last one that is neither decoded nor shown later."""
    keys = np.flatnonzero(survey.is_key)
    key_times_s = survey.times_s[keys]
    is_later = np.diff(np.maximum.accumulate(key_times_s), prepend=-np.inf) > 0
    keys, key_times_s = np.append(0, keys[is_later]), np.append(-np.inf, key_times_s[is_later])
    decoded_before = np.searchsorted(keys, packets, side="right")
    shown_before = np.searchsorted(key_times_s, survey.times_s[packets], side="right")
    return keys[np.minimum(decoded_before, shown_before) - 1]

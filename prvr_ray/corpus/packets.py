"""What a video file holds, learned from its packets without decoding them, and which packets give the wanted frames.

Demuxing takes a few microseconds a packet, decoding a hundred times that. So the file is surveyed first: presentation
times, keyframes, length. From these follow the wanted frames, their segments and, for each segment, the runs of packets
to decode. Frames are therefore the same whether the packets between them are decoded or skipped.

Shapes: P packets of the stream in decoding order.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prvr_ray.corpus.container import VideoFile
from prvr_ray.corpus.errors import VideoError

_ROUNDING_S = 1e-3  # containers with a millisecond clock round a frame's time by half of it
RESTART_PACKETS = 4.0  # decoding these costs as much as emptying the decoder and seeking


@dataclass(frozen=True)
class Sampling:
    """Which frames are wanted: those shown at k/fps seconds, k from 0, or the last keyframe before each of these times.

    A frame shown at several of these times is taken once. A segment spans segment_frames of these times.
    """

    fps: float = 1.0
    keyframes_only: bool = False
    segment_frames: int = 1024


@dataclass(frozen=True)
class Survey:
    """The packets of one video stream, in decoding order.

    times_s: (P,) presentation times since the stream's start. pts: (P,) the same in the stream's clock.
    is_key, is_shown: (P,) keyframes; packets that give a picture of their own. first_pts: of the first shown one.
    by_decoding: the container's times cannot be trusted, so the frames were decoded and counted: P frames as they come.
    """

    times_s: np.ndarray
    pts: np.ndarray
    is_key: np.ndarray
    is_shown: np.ndarray
    first_pts: int
    start_s: float
    duration_s: float
    share: float  # of the length that the header promises
    by_decoding: bool


@dataclass(frozen=True)
class SegmentPlan:
    """One segment: the times of its frames, increasing, and the runs of packets, first to last, that hold them.

    after_s: time of the wanted frame before the segment: no earlier frame may stand in for a damaged one.
    """

    index: int
    is_last: bool
    times_s: np.ndarray
    after_s: float
    runs: list[tuple[int, int]]


def survey(file: VideoFile, beat: Callable[[], None]) -> Survey:
    """Read a file's packets once, to its end.

    Args:
        beat: called now and then: the work goes on.

    Raises:
        VideoError: empty (no packet), decode (no frame where frames must be decoded), too_large (too long).
    """
    pts, durations, is_key, is_shown = array("q"), array("q"), array("b"), array("b")
    is_timed = True
    for packet in file.demux():
        beat()
        is_timed &= packet.pts is not None
        pts.append(packet.pts or 0)
        durations.append(packet.duration or 0)
        is_key.append(packet.is_keyframe)
        is_shown.append(not packet.is_discard)
    if not any(is_shown):
        raise VideoError("empty", "the video stream holds no pictures")
    pts_P = np.array(pts)
    if not is_timed or _is_misleading(pts_P, bool(file.stream.codec_context.has_b_frames)):
        return _survey_by_decoding(file, beat)
    return _survey_of(file, pts_P, np.array(durations), np.array(is_key, bool), np.array(is_shown, bool))


def plan_segments(survey: Survey, sampling: Sampling, restart_packets: float = RESTART_PACKETS) -> list[SegmentPlan]:
    """Choose the wanted frames, cut them into segments, and find the packets that each one needs.

    Args:
        restart_packets: a gap of unwanted packets is skipped when it is longer than this; 0 always seeks, infinity
            decodes sequentially. It changes the cost, never the frames.
    """
    times_s, slots, packets = _wanted(survey, sampling)
    firsts = _keyframes_before(survey, packets)
    segment_of = slots // sampling.segment_frames
    last = int(segment_of[-1])
    plans = []
    for index in range(last + 1):
        begin, end = np.searchsorted(segment_of, [index, index + 1])
        runs = [] if survey.by_decoding else _runs(packets[begin:end], firsts[begin:end], restart_packets)
        after_s = float(times_s[begin - 1]) if begin else -np.inf
        plans.append(SegmentPlan(index, index == last, times_s[begin:end], after_s, runs))
    return plans


def _is_misleading(pts_P: np.ndarray, reorders: bool) -> bool:
    """Whether packet times cannot be the frames': repeated, or in decoding order although the codec reorders (AVI)."""
    steps = np.diff(pts_P)
    return len(np.unique(pts_P)) < len(pts_P) or (reorders and len(pts_P) > 2 and bool((steps > 0).all()))


def _survey_by_decoding(file: VideoFile, beat: Callable[[], None]) -> Survey:
    """Decode the whole file for its frames' times. They are sorted: the n-th frame to come has the n-th time."""
    file.reopen()
    pts, is_key = array("q"), array("b")
    step = round(file.frame_s() / file.clock_s)
    for frame in file.decode_all():
        beat()
        pts.append(frame.pts if frame.pts is not None else (pts[-1] + step if pts else 0))
        is_key.append(frame.key_frame)
    if not pts:
        raise VideoError("decode", "no frame can be decoded")
    pts_P = np.sort(np.array(pts))
    no_durations, all_shown = np.zeros(len(pts_P), np.int64), np.ones(len(pts_P), bool)
    return _survey_of(file, pts_P, no_durations, np.array(is_key, bool), all_shown, by_decoding=True)


def _survey_of(
    file: VideoFile,
    pts_P: np.ndarray,
    durations_P: np.ndarray,
    is_key: np.ndarray,
    is_shown: np.ndarray,
    by_decoding: bool = False,
) -> Survey:
    clock, frame_s = file.clock_s, file.frame_s()
    start = int(pts_P[is_shown].min())
    times_s = (pts_P - start) * clock
    ends_s = times_s + np.where(durations_P > 0, durations_P * clock, frame_s)
    duration_s = float(ends_s[is_shown].max())
    limit_s = file.limits.max_duration_s
    if duration_s > limit_s:
        raise VideoError("too_large", f"{duration_s:.0f} s long; ingest.max_duration_s is {limit_s:.0f}")
    share = _decoded_share(duration_s, file.promised_s(), frame_s)
    return Survey(times_s, pts_P, is_key, is_shown, start, start * clock, duration_s, share, by_decoding)


def _decoded_share(duration_s: float, promised_s: float, frame_s: float) -> float:
    """What there is of the promised length; 1 where only rounding or a longer sound track is missing."""
    tolerated_s = max(2 * frame_s, min(1.0, 0.1 * promised_s))
    return 1.0 if promised_s - duration_s <= tolerated_s else duration_s / promised_s


def _wanted(survey: Survey, sampling: Sampling) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times of the wanted frames, increasing; the first point of the grid that shows each; the packet of each."""
    is_candidate = survey.is_shown & survey.is_key if sampling.keyframes_only else survey.is_shown
    if not is_candidate.any():
        is_candidate = survey.is_shown
    packets = np.flatnonzero(is_candidate)
    packets = packets[np.argsort(survey.times_s[packets], kind="stable")]
    times_s = survey.times_s[packets]
    last_s = survey.times_s[survey.is_shown].max()
    grid_s = np.arange(int((last_s + _ROUNDING_S) * sampling.fps) + 1) / sampling.fps
    shown = np.searchsorted(times_s, grid_s + _ROUNDING_S, side="right") - 1
    frames, slots = np.unique(shown, return_index=True)
    kept = frames >= 0  # before the first keyframe nothing is shown
    return times_s[frames[kept]], slots[kept], packets[frames[kept]]


def _runs(packets: np.ndarray, firsts: np.ndarray, restart_packets: float) -> list[tuple[int, int]]:
    """First and last packet of each stretch that must be decoded: from a keyframe to the last packet that is wanted."""
    runs: list[tuple[int, int]] = []
    for first, packet in sorted(zip(firsts.tolist(), packets.tolist(), strict=True)):
        if runs and first - runs[-1][1] - 1 <= restart_packets:
            runs[-1] = (runs[-1][0], max(runs[-1][1], packet))
        else:
            runs.append((first, packet))
    return runs


def _keyframes_before(survey: Survey, packets: np.ndarray) -> np.ndarray:
    """For each packet the one that decoding must begin with: the last keyframe neither decoded nor shown later."""
    keys = np.flatnonzero(survey.is_key)
    key_times_s = survey.times_s[keys]
    is_later = np.diff(np.maximum.accumulate(key_times_s), prepend=-np.inf) > 0
    keys, key_times_s = np.append(0, keys[is_later]), np.append(-np.inf, key_times_s[is_later])
    decoded_before = np.searchsorted(keys, packets, side="right")
    shown_before = np.searchsorted(key_times_s, survey.times_s[packets], side="right")
    return keys[np.minimum(decoded_before, shown_before) - 1]

"""Decodes the wanted frames of one local video file, segment by segment, into encoders' inputs.

Files are untrusted, so this module runs in the child process of `prvr_ray.video.decoder_process`, which bounds its time
and memory. `prvr_ray.video.packets` reads the packets; `prvr_ray.video.frames` shapes the pixels.

Shapes: F frames, H and W pixels.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prvr_ray.schema import PARTIAL_BELOW
from prvr_ray.video.container import Limits, VideoFile
from prvr_ray.video.errors import VideoError
from prvr_ray.video.frame_reader import FrameReader, TimedFrame
from prvr_ray.video.frames import FrameConverter, FrameSpec
from prvr_ray.video.packets import RESTART_PACKETS, Beat, Sampling, SegmentPlan, Survey, plan_segments, survey


@dataclass(frozen=True)
class Segment:
    """The frames of one segment.

    timestamps_s: (F,) float64, when a player shows the frames that are used; the container's start is zero.
    frames: one (F, 3, H, W) uint8 array for each frame spec.
    start_s, duration_s: of the video stream's first frame and of its end, on the same clock.
    decoded_share: the fraction of this segment's frames that were decoded, times the fraction of the video stream's
    promised length that is in the file.
    warnings: `truncated`, `clock_restarts`, `wild_times`.
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
    beat: Beat = lambda decoded_s=0.0: None,
    restart_packets: float = RESTART_PACKETS,
) -> Iterator[Segment]:
    """Decode each wanted frame of a file once, for any number of encoders.

    Args:
        path: a local file.
        specs: the inputs of one or several encoders.
        skip: indexes of segments to leave out.
        beat: called while the work goes on, with the seconds of video that have just been decoded.
        restart_packets: see `plan_segments`; it changes the cost, never the frames.

    Yields:
        The segments that are not skipped, in order.

    Raises:
        VideoError: the file, or the segment after the last one yielded, cannot be used.
    """
    with VideoFile(path, limits) as file:
        found = survey(file, beat)
        reader = FrameReader(file, found, beat)
        converter = FrameConverter(file.stream.sample_aspect_ratio, limits.max_pixels)
        for plan in plan_segments(found, sampling, skip, restart_packets):
            yield _segment(plan, found, reader, converter, specs)


def _segment(
    plan: SegmentPlan, found: Survey, reader: FrameReader, converter: FrameConverter, specs: Sequence[FrameSpec]
) -> Segment:
    times_s, frames = [], [np.empty((len(plan.times_s), 3, *spec.image_size), np.uint8) for spec in specs]
    for row, (time_s, frame) in enumerate(_pick_frames(reader, plan)):
        times_s.append(found.start_s + time_s)
        picture = converter.picture(frame)
        for frames_F3HW, spec in zip(frames, specs, strict=True):
            frames_F3HW[row] = converter.fit(picture, spec)
    if not times_s and plan.index == 0:
        raise VideoError("decode", "no frame can be decoded")
    decoded_share = found.fraction * (len(times_s) / len(plan.times_s) if len(plan.times_s) else 1.0)
    truncated = ("truncated",) if decoded_share < PARTIAL_BELOW else ()
    return Segment(
        plan.index,
        plan.is_last,
        np.array(times_s),
        [frames_F3HW[: len(times_s)] for frames_F3HW in frames],
        found.start_s,
        found.start_s + found.duration_s,
        decoded_share,
        found.warnings + truncated,
    )


def _pick_frames(reader: FrameReader, plan: SegmentPlan) -> Iterator[TimedFrame]:
    """The frame of each wanted time; if it is damaged, the last one since the wanted frame before it, if any."""
    wanted = deque(plan.times_s.tolist())
    if not wanted:
        return
    latest, stand_in = plan.after_s, None
    for time_s, frame in reader.frames(plan):
        if time_s <= latest:
            continue  # decoded only as a reference for others, or a clock that steps back
        latest = time_s
        while wanted and wanted[0] < time_s:
            wanted.popleft()
            if stand_in:
                yield stand_in
            stand_in = None
        if not wanted:  # it belongs to the next segment
            reader.give_back((time_s, frame))
            return
        stand_in = time_s, frame
        if wanted[0] == time_s:
            wanted.popleft()
            yield stand_in
            stand_in = None
        if not wanted:
            return
    if wanted and stand_in:
        yield stand_in

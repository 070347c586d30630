"""Filmstrips: frames of a moment side by side in one small JPEG, as a data URI.

Shapes: F frames, H and W pixels.
"""

import base64
import io
from typing import Self

import numpy as np
from PIL import Image

from prvr_ray.report.figures import Span
from prvr_ray.storage import open_store
from prvr_ray.video.container import Limits
from prvr_ray.video.decoder_process import VideoDecoder
from prvr_ray.video.errors import VideoError
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling

_SLOTS_PER_FRAME = 2  # odd slots are the middles of the frames' parts
_LEAD_S = 1.0  # the frame shown at a moment's start may have appeared up to this much earlier
_QUALITY = 70
_TIMEOUT_S, _STALL_S = 120.0, 30.0


class Projector:
    """Makes filmstrips with one decoder process for all videos; a damaged file can kill it but not the report."""

    def __init__(self) -> None:
        self._decoder = VideoDecoder(timeout_s=_TIMEOUT_S, stall_s=_STALL_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._decoder.close()

    def strip(self, uri: str, duration_s: float, moment: Span, num_frames: int, size: tuple[int, int]) -> str:
        """Make a strip of the frames in the middle of equal parts of a moment, as a data URI.

        Args:
            uri: the video's URI; a remote video is downloaded temporarily.
            duration_s: length of the whole video.
            size: maximum height and width of one frame in pixels.

        Raises:
            VideoError: the video cannot be decoded in that span.
            OSError: no such file, or no permission to read it.
        """
        part_s = (moment.end_s - moment.start_s) / num_frames
        sampling = Sampling(_SLOTS_PER_FRAME / part_s, segment_frames=1, from_first_frame=False)
        first = int(max(0.0, moment.start_s - _LEAD_S) * sampling.fps)
        last = int(moment.end_s * sampling.fps)
        skipped = [*range(first), *range(last + 1, int(duration_s * sampling.fps) + 2)]
        folder, _, key = uri.rpartition("/")
        with open_store(folder).local_file(key) as path:
            specs = [FrameSpec(size, "longest")]
            segments = list(self._decoder.segments(str(path), sampling, specs, Limits(), skipped))
        times_F = np.concatenate([np.empty(0), *(segment.timestamps_s for segment in segments)])
        if not len(times_F):
            raise VideoError("decode", f"no frame between {moment.start_s:.1f} s and {moment.end_s:.1f} s")
        frames_F3HW = np.concatenate([segment.frames[0] for segment in segments])
        middles = moment.start_s + (np.arange(num_frames) + 0.5) * part_s
        shown = np.maximum(np.searchsorted(times_F, middles, side="right") - 1, 0)
        return _as_jpeg(np.concatenate(_trim(frames_F3HW)[shown], axis=2))


def _trim(frames_F3HW: np.ndarray) -> np.ndarray:
    """Crop borders that are black in all frames, whether in the video or added as padding."""
    rows, columns = (np.flatnonzero(frames_F3HW.any(axis=axes)) for axes in ((0, 1, 3), (0, 1, 2)))
    if not len(rows):
        return frames_F3HW
    return frames_F3HW[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _as_jpeg(picture_3HW: np.ndarray) -> str:
    sink = io.BytesIO()
    Image.fromarray(picture_3HW.transpose(1, 2, 0)).save(sink, "jpeg", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"

"""Makes the rows of an index of the teacher alone, from the teacher's own frame vectors. No training is needed.

Shapes: Q queries, F frames of a window, D features.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from prvr_ray import schema
from prvr_ray.collection import VideoFeatures
from prvr_ray.index.student_encoder import Windowing
from prvr_ray.retrieval.windows import Window
from prvr_ray.schema import pack_times, pack_vectors

TEACHER = "teacher"  # the branch, and its column in schema.INDEX
WINDOW_FRAMES = 256  # of a window, by default. All frames are kept, so the length changes no video's score

_VIDEOS_PER_TABLE = 64


class TeacherWindows:
    """Turns videos into rows of schema.INDEX that hold the teacher's vectors; has the interface of `WindowEncoder`."""

    def __init__(self, windowing: Windowing):
        self._windowing = windowing

    def encode(self, videos: Iterable[VideoFeatures]) -> Iterator[pa.Table]:
        """Yield tables of rows; all windows of a video are in the same table.

        Raises:
            ValueError: vectors that are not finite, naming the video.
        """
        rows: list[dict[str, object]] = []
        for number, video in enumerate(videos, start=1):
            rows += self._rows(video)
            if not number % _VIDEOS_PER_TABLE:
                yield pa.Table.from_pylist(rows, schema.INDEX)
                rows = []
        if rows:
            yield pa.Table.from_pylist(rows, schema.INDEX)

    def _rows(self, video: VideoFeatures) -> Iterator[dict[str, object]]:
        for number, window in enumerate(self._windowing.cut(video)):
            frames_FD = frames_of(video, window)
            if not np.isfinite(frames_FD).all():
                raise ValueError(f"features of video {video.video_id!r} are not finite; encode or import it again")
            yield {
                "video_id": video.video_id,
                "etag": video.etag,
                "added_at": video.added_at,
                "window": number,
                "num_frames": len(frames_FD),
                "edges_s": pack_times(_edges(window, len(frames_FD))),
                TEACHER: pack_vectors(unit_rows(frames_FD)),
            }


def frames_of(video: VideoFeatures, window: Window) -> np.ndarray:
    """Return the teacher's frames of a window.

    Where the teacher has another number of frames than the student, take those at the same relative positions.
    """
    ratio = len(video.teacher) / len(video.timestamps_s)
    return video.teacher[int(window.start * ratio) : int(np.ceil(window.stop * ratio))]


def unit_rows(rows_ND: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Scale rows to length 1, in float32; a row of zeros stays a row of zeros."""
    rows_ND = np.asarray(rows_ND, np.float32)
    return rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)


def _edges(window: Window, num_frames: int) -> np.ndarray:
    """Return the time edges of the teacher's frames: the window's own, or interpolated to the number of frames."""
    num_edges = len(window.edges_s)
    if num_frames == num_edges - 1:
        return window.edges_s
    return np.interp(np.linspace(0, num_edges - 1, num_frames + 1), np.arange(num_edges), window.edges_s)

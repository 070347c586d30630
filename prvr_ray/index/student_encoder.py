"""Encodes with a trained student: videos into rows of an index, and queries into unit vectors. No Ray here.

Shapes: Q queries, F frames, T tokens, D features, R rows of several windows or queries together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from prvr_ray import schema
from prvr_ray.collection import VideoFeatures
from prvr_ray.retrieval.windows import Window, cut_windows, window_starts
from prvr_ray.schema import pack_times, pack_vectors
from prvr_ray.student.batching import cut_tokens, normalize, sample_uniform
from prvr_ray.student.model import Layout, Student

_QUERIES_PER_PASS = 1024


@dataclass(frozen=True)
class Windowing:
    """How videos are cut into windows, for an index and for an evaluation.

    mode: `whole` or `windows`. num_frames: the most frames of a window. overlap: frames that neighbours share.
    """

    mode: str
    num_frames: int
    overlap: int

    def cut(self, video: VideoFeatures) -> list[Window]:
        """Cut a video into windows."""
        return cut_windows(
            video.timestamps_s,
            video.duration_s,
            limit=self.num_frames,
            windowing=self.mode,
            overlap=self._usable_overlap,
        )

    def num_windows(self, num_frames: int) -> int:
        """Return how many windows `cut` makes of a video with this number of frames."""
        return len(window_starts(num_frames, self.num_frames, self.mode, self._usable_overlap))

    @property
    def _usable_overlap(self) -> int:
        return min(self.overlap, self.num_frames // 2)


class WindowEncoder:
    """Encodes videos into rows of schema.INDEX."""

    def __init__(self, student: Student, windowing: Windowing, pass_frames: int, device: str | torch.device = "cpu"):
        self._student, self._device = student.to(device).eval(), torch.device(device)
        self._windowing, self._pass_frames = windowing, pass_frames

    def encode(self, videos: Iterable[VideoFeatures]) -> Iterator[pa.Table]:
        """Yield one table of rows per forward pass; all windows of a video are in the same table.

        Raises:
            ValueError: features that are not finite, naming the video.
        """
        waiting: list[tuple[VideoFeatures, list[Window]]] = []
        num_frames = 0
        for video in videos:
            windows = self._windowing.cut(video)
            waiting.append((video, windows))
            num_frames += sum(len(window.edges_s) - 1 for window in windows)
            if num_frames >= self._pass_frames:
                yield self._pass(waiting)
                waiting, num_frames = [], 0
        if waiting:
            yield self._pass(waiting)

    def _pass(self, videos: list[tuple[VideoFeatures, list[Window]]]) -> pa.Table:
        rows = [(video, number, window) for video, windows in videos for number, window in enumerate(windows)]
        inputs = [_student_input(video, window, self._windowing.num_frames) for video, _, window in rows]
        lengths = [len(input_FD) for input_FD in inputs]
        encoded = encode_frames(self._student, inputs, self._device) if rows else {}
        columns = {
            "video_id": [video.video_id for video, _, _ in rows],
            "etag": [video.etag for video, _, _ in rows],
            "added_at": [video.added_at for video, _, _ in rows],
            "window": [number for _, number, _ in rows],
            "num_frames": lengths,
            "edges_s": [pack_times(window.edges_s) for _, _, window in rows],
        }
        for branch in ("inheritance", "exploration", "teacher"):
            parts = np.split(encoded[branch], np.cumsum(lengths)[:-1]) if branch in encoded else [None] * len(rows)
            columns[branch] = [None if part is None else pack_vectors(part) for part in parts]
        return pa.table(columns, schema=schema.INDEX)


def _student_input(video: VideoFeatures, window: Window, limit: int) -> np.ndarray:
    input_FD = normalize(sample_uniform(video.student[window.start : window.stop], limit))
    if not np.isfinite(input_FD).all():
        raise ValueError(f"features of video {video.video_id!r} are not finite; encode or import it again")
    return input_FD


@torch.inference_mode()
def encode_frames(student: Student, inputs: Sequence[np.ndarray], device: torch.device) -> dict[str, np.ndarray]:
    """Encode windows, each (F, D) as the student expects it: branch -> (R, D) float32 unit rows."""
    rows_RD = torch.from_numpy(np.concatenate(inputs)).to(device)
    encoded = student.encode_frame_rows(rows_RD, _layout(inputs, device))
    return {branch: F.normalize(vectors_RD, dim=1).cpu().numpy() for branch, vectors_RD in encoded.items()}


@torch.inference_mode()
def encode_queries(
    student: Student, tokens: Sequence[np.ndarray], device: torch.device | str = "cpu", *, keep_last: bool = False
) -> dict[str, np.ndarray]:
    """Encode queries.

    Args:
        tokens: per query (T, D) token vectors as the features hold them.
        keep_last: how queries of more than max_tokens are cut; see `prvr_ray.student.batching.cut_tokens`.

    Returns:
        branch -> (Q, D) float32 unit rows.
    """
    if not tokens:
        raise ValueError("there are no queries to encode")
    student, parts = student.to(device).eval(), []
    for start in range(0, len(tokens), _QUERIES_PER_PASS):
        some, limit = tokens[start : start + _QUERIES_PER_PASS], student.limits["tokens"]
        inputs = [normalize(cut_tokens(item, limit, keep_last)) for item in some]
        rows_RD = torch.from_numpy(np.concatenate(inputs)).to(device)
        parts.append(student.encode_query_rows(rows_RD, _layout(inputs, torch.device(device))))
    return {
        branch: F.normalize(torch.cat([part[branch] for part in parts]), dim=1).cpu().numpy()
        for branch in student.branches
    }


def _layout(inputs: Sequence[np.ndarray], device: torch.device) -> Layout:
    return Layout.from_lengths(torch.tensor([len(item) for item in inputs], device=device))

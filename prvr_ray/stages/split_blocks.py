"""A split as an evaluation reads it: query vectors of every branch, and videos encoded block by block. No Ray here.

Branches are the student's, then the teacher, whose cosines need no training.

Shapes: Q queries, F frames, D features.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import FeatureSet, VideoFeatures
from prvr_ray.retrieval.blocks import FrameBlock
from prvr_ray.retrieval.moments import branch_curves, fuse_curves, locate
from prvr_ray.schema import unpack_times, unpack_vectors
from prvr_ray.stages.student_vectors import WindowEncoder, Windowing, encode_queries
from prvr_ray.student.model import Student

_VIDEOS_PER_BLOCK = 256
_PASS_FRAMES = 8192


@dataclass(frozen=True)
class SplitBlocks:
    """The videos of a split, cut and encoded as `prvr index` would; iterating again encodes them again.

    rows: rows of `features.complete()`.
    """

    features: FeatureSet
    rows: pa.Table
    student: Student
    windowing: Windowing
    device: str = "cpu"

    def __iter__(self) -> Iterator[FrameBlock]:
        for block, _ in self.with_edges():
            yield block

    def with_edges(self) -> Iterator[tuple[FrameBlock, list[np.ndarray]]]:
        """Each block, and the time edges of its windows' frames in seconds."""
        videos = self.features.read_videos(self.rows)
        while some := list(itertools.islice(videos, _VIDEOS_PER_BLOCK)):
            yield self._block(some)

    def _block(self, videos: list[VideoFeatures]) -> tuple[FrameBlock, list[np.ndarray]]:
        encoder = WindowEncoder(self.student, self.windowing, _PASS_FRAMES, self.device)
        windows = pa.concat_tables(encoder.encode(videos))
        teacher = [_unit(part_FD) for video in videos for part_FD in _teacher_frames(video, self.windowing)]
        branches = [[*map(_half_rows, windows[name], windows["num_frames"])] for name in self.student.branches]
        parts = [*branches, teacher]
        offsets = [np.cumsum([0, *map(len, rows)]) for rows in parts]
        block = FrameBlock(windows["video_id"].to_pylist(), offsets, [np.concatenate(rows) for rows in parts])
        return block, [unpack_times(value) for value in windows["edges_s"]]


def split_rows(features: FeatureSet, split: str) -> pa.Table:
    """The rows of a split's complete videos."""
    videos = features.collection.videos()
    members = videos.filter(pc.equal(videos["split"], split))["video_id"].combine_chunks()
    rows = features.complete()
    return rows.filter(pc.is_in(rows["video_id"], members))


def query_vectors(features: FeatureSet, query_ids: list[str], student: Student, device: str) -> list[np.ndarray]:
    """Unit rows of every branch, (Q, D) each, in the order of query_ids.

    Raises:
        ValueError: a query that is not encoded.
    """
    encoded = features.queries()
    wanted = encoded.filter(pc.is_in(encoded["query_id"], pa.array(query_ids, pa.string())))
    found = {query.query_id: query for query in features.read_queries(wanted)}
    absent = [query_id for query_id in query_ids if query_id not in found]
    if absent:
        raise ValueError(f"{len(absent)} queries have no features, {absent[0]!r} first; `prvr ingest` encodes them")
    vectors = encode_queries(student, [found[query_id].tokens for query_id in query_ids], device)
    return [*vectors.values(), _unit(np.stack([found[query_id].teacher for query_id in query_ids]))]


def find_moments(
    queries: Sequence[tuple[float, np.ndarray]],
    blocks: SplitBlocks,
    queries_of_video: Mapping[str, Sequence[int]],
    threshold: float,
) -> tuple[np.ndarray, dict[str, float]]:
    """The moment of each query in a video that is given, by the student's fused curve.

    Args:
        queries: per branch of the student, weight and (Q, D) unit rows.
        queries_of_video: video_id -> the rows of queries that are asked of it, a query of one video at most.
        threshold: see `prvr_ray.retrieval.moments.locate`.

    Returns:
        (Q, 2) start and end in seconds, NaN for a query of no video; and the length of each of the videos, seconds.
    """
    num_queries = len(queries[0][1])
    spans_Q2, best_Q = np.full((num_queries, 2), np.nan), np.full(num_queries, -np.inf)
    durations: dict[str, float] = {}
    for block, edges in blocks.with_edges():
        asked = [(q, w) for w, video_id in enumerate(block.video_ids) for q in queries_of_video.get(video_id, ())]
        durations |= {
            video_id: float(of_window[-1]) for video_id, of_window in zip(block.video_ids, edges, strict=True)
        }
        if not asked:
            continue
        query_P, window_P = np.array(asked).T
        student = FrameBlock(block.video_ids, block.branch_offsets[0], block.frames[: len(queries)])
        curves = branch_curves([rows_QD for _, rows_QD in queries], student, query_P, window_P)
        weights = [weight for weight, _ in queries]
        score_P = sum(weight * branch_PF.max(1) for weight, branch_PF in zip(weights, curves, strict=True))
        curve_PF = fuse_curves(weights, curves)
        first_edge_W = np.cumsum([0, *map(len, edges)])
        found = locate(curve_PF, np.concatenate(edges), first_edge_W[window_P], threshold)
        for pair, query in enumerate(query_P):
            if score_P[pair] > best_Q[query]:  # the window that a search would answer with
                best_Q[query], spans_Q2[query] = score_P[pair], (found.start_s[pair], found.end_s[pair])
    return spans_Q2, durations


def _teacher_frames(video: VideoFeatures, windowing: Windowing) -> list[np.ndarray]:
    """The teacher's frames of each window. Where it saw other frames than the student, those at the same shares."""
    windows = windowing.cut(video)
    scale = len(video.teacher) / len(video.student)
    spans = [(int(window.start * scale), int(np.ceil(window.stop * scale))) for window in windows]
    return [video.teacher[start:stop] for start, stop in spans]


def _half_rows(value: pa.Scalar, num_frames: pa.Scalar) -> np.ndarray:
    return unpack_vectors(value, len(value.as_buffer()) // (2 * num_frames.as_py()))


def _unit(rows_FD: np.ndarray) -> np.ndarray:
    rows_FD = rows_FD.astype(np.float32)
    return rows_FD / np.maximum(np.linalg.norm(rows_FD, axis=1, keepdims=True), 1e-12)

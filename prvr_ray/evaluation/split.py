"""Reads a split for an evaluation: query vectors of every branch, and videos encoded block by block. No Ray here.

The branches are the student's, followed by the teacher's own vectors.

Shapes: Q queries, F frames, D features.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import FeatureSet, VideoFeatures
from prvr_ray.index.student_encoder import WindowEncoder, Windowing, encode_queries
from prvr_ray.index.teacher_encoder import frames_of, unit_rows
from prvr_ray.retrieval.blocks import FrameBlock
from prvr_ray.retrieval.moments import find_moments
from prvr_ray.schema import unpack_times, unpack_vectors
from prvr_ray.student.model import Student

_VIDEOS_PER_BLOCK = 256
_PASS_FRAMES = 8192


@dataclass(frozen=True)
class EvaluationSplit:
    """The videos of a split, cut and encoded as `prvr index` does. Each iteration encodes them again.

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
        """Yield each block with the time edges of its windows' frames, in seconds."""
        videos = self.features.read_videos(self.rows)
        while some := list(itertools.islice(videos, _VIDEOS_PER_BLOCK)):
            yield self._block(some)

    def _block(self, videos: list[VideoFeatures]) -> tuple[FrameBlock, list[np.ndarray]]:
        encoder = WindowEncoder(self.student, self.windowing, _PASS_FRAMES, self.device)
        windows = pa.concat_tables(encoder.encode(videos))
        cuts = [(video, window) for video in videos for window in self.windowing.cut(video)]
        teacher = [unit_rows(frames_of(video, window)).astype(np.float16) for video, window in cuts]  # as indexed
        branches = [[*map(_half_rows, windows[name], windows["num_frames"])] for name in self.student.branches]
        parts = [*branches, teacher]
        offsets = [np.cumsum([0, *map(len, rows)]) for rows in parts]
        block = FrameBlock(windows["video_id"].to_pylist(), offsets, [np.concatenate(rows) for rows in parts])
        return block, [unpack_times(value) for value in windows["edges_s"]]


@dataclass(frozen=True)
class HubBlocks:
    """Blocks with one more branch, whose single frame and single feature per window is the hubness of its video.

    A query vector of 1 with a negative weight then subtracts the hubness from the window's score. The subtraction goes
    through the same exact dot products as all scores, so ranks and ties stay exact.
    """

    blocks: EvaluationSplit
    hubness: Mapping[str, float]

    def __iter__(self) -> Iterator[FrameBlock]:
        for block in self.blocks:
            hubs_W1 = np.array([[self.hubness[video_id]] for video_id in block.video_ids], np.float32)
            offsets = [*block.branch_offsets, np.arange(len(hubs_W1) + 1)]
            yield FrameBlock(block.video_ids, offsets, [*block.frames, hubs_W1])


def split_rows(features: FeatureSet, split: str) -> pa.Table:
    """Return the feature rows of a split's complete videos."""
    videos = features.collection.videos()
    members = videos.filter(pc.equal(videos["split"], split))["video_id"].combine_chunks()
    rows = features.complete()
    return rows.filter(pc.is_in(rows["video_id"], members))


def query_vectors(
    features: FeatureSet, queries: list[dict[str, Any]], student: Student, device: str
) -> list[np.ndarray]:
    """Return unit rows of every branch, (Q, D) each, in the order of the queries (rows of schema.QUERIES).

    Raises:
        ValueError: a query that is not encoded, or whose text has changed since it was.
    """
    query_ids = [query["query_id"] for query in queries]
    texts = pa.table({"query_id": pa.array(query_ids, pa.string()), "text": [query["text"] for query in queries]})
    encoded = features.match_queries(texts)
    if absent := [*encoded.missing, *encoded.stale]:
        changed = f" ({len(encoded.stale)} of them because their text has changed)" if encoded.stale else ""
        raise ValueError(f"{len(absent)} queries have no features{changed}, such as {absent[0]!r}: run `prvr ingest`")
    found = {query.query_id: query for query in features.read_queries(encoded.rows)}
    tokens = [found[query_id].tokens for query_id in query_ids]
    vectors = encode_queries(student, tokens, device, keep_last=features.has_causal_text)
    return [*vectors.values(), unit_rows([found[query_id].teacher for query_id in query_ids])]


def moments_in_videos(
    queries: Sequence[tuple[float, np.ndarray]],
    blocks: EvaluationSplit,
    queries_of_video: Mapping[str, Sequence[int]],
    threshold: float,
) -> tuple[np.ndarray, dict[str, float]]:
    """Find the moment of each query in a given video, from the student's fused curve.

    Args:
        queries: per branch of the student, weight and (Q, D) unit rows.
        queries_of_video: video_id -> the rows of the queries to look for in it; each query has at most one video.
        threshold: see `prvr_ray.retrieval.moments.locate`.

    Returns:
        (Q, 2) start and end in seconds, NaN for a query without a video; and the duration of each video in seconds.
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
        found = find_moments(queries, student, np.concatenate(edges), query_P, window_P, threshold)
        for pair, query in enumerate(query_P):
            if found.score_P[pair] > best_Q[query]:  # the same choice of window as in a search
                best_Q[query], spans_Q2[query] = found.score_P[pair], (found.start_s[pair], found.end_s[pair])
    return spans_Q2, durations


def _half_rows(value: pa.Scalar, num_frames: pa.Scalar) -> np.ndarray:
    return unpack_vectors(value, len(value.as_buffer()) // (2 * num_frames.as_py()))

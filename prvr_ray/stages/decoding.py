"""What a decoding worker of ingest does: videos in, packs of frames out. Neither Ray nor torch is imported here.

A pack is a few segments whose frames together fill some forward passes of the encoder. It travels as one value, so
that micro-batches run across the borders of videos.

Shapes: F frames, H and W pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prvr_ray import schema
from prvr_ray.corpus.container import Limits
from prvr_ray.corpus.decoder import VideoDecoder
from prvr_ray.corpus.errors import VideoError
from prvr_ray.corpus.frames import FrameSpec
from prvr_ray.corpus.packets import Sampling
from prvr_ray.corpus.video import Segment
from prvr_ray.stages.sources import parent_store

Row = dict[str, Any]

_PACK = pa.schema([("segments", pa.large_binary()), ("frames", pa.list_(pa.large_binary()))])


@dataclass(frozen=True)
class DecodePlan:
    """How every video is decoded. specs: one frame spec for each distinct encoder input."""

    sampling: Sampling
    specs: tuple[FrameSpec, ...]
    limits: Limits
    timeout_s: float
    stall_s: float
    memory_bytes: int
    pack_frames: int

    def load(self) -> VideoDecoder:
        """A decoder within these limits."""
        return VideoDecoder(timeout_s=self.timeout_s, stall_s=self.stall_s, memory_bytes=self.memory_bytes)


class DecodeVideos:
    """Turns wanted videos into packs, with one child process that it keeps."""

    def __init__(self, plan: DecodePlan):
        self._plan = plan
        self._decoder = plan.load()

    def __call__(self, videos: pa.Table) -> Iterator[pa.Table]:
        """Decode the videos of a table: video_id, uri, etag, added_at, missing, skip (segments that stand already)."""
        rows: list[Row] = []
        frames: list[list[np.ndarray]] = [[] for _ in self._plan.specs]
        for video in videos.to_pylist():
            for row, of_segment in self._rows(video):
                rows.append(row)
                for of_spec, more in zip(frames, of_segment, strict=False):
                    of_spec.append(more)
                if sum(row["num_frames"] for row in rows) >= self._plan.pack_frames:
                    yield _pack(rows, frames)
                    rows, frames = [], [[] for _ in self._plan.specs]
        if rows:
            yield _pack(rows, frames)

    def _rows(self, video: Row) -> Iterator[tuple[Row, list[np.ndarray]]]:
        """The segments of one video, each with its frames for every frame spec; a failure is its last row."""
        identity = {name: video[name] for name in ("video_id", "etag", "added_at")}
        following = 0
        try:
            for segment in self._segments(video):
                following = segment.index + 1
                yield identity | _segment_row(segment), segment.frames
        except VideoError as error:
            while following in video["skip"]:
                following += 1
            failure = {"segment": following, "is_last": True, "num_frames": 0}
            yield identity | failure | {"error_class": error.error_class, "error": str(error)}, []

    def _segments(self, video: Row) -> Iterator[Segment]:
        if video["missing"]:
            raise VideoError("download", video["missing"])
        store, key = parent_store(video["uri"])
        try:
            with store.local_file(key) as path:
                with open(path, "rb"):
                    pass  # a file that this node cannot read is out of reach; libav would call it damaged
                plan = self._plan
                yield from self._decoder.segments(str(path), plan.sampling, plan.specs, plan.limits, video["skip"])
        except OSError as error:
            raise VideoError("download", str(error)) from error


def _pack(rows: list[Row], frames: list[list[np.ndarray]]) -> pa.Table:
    """One pack: the rows without vectors, and for each frame spec the frames of all rows, one after the other."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=schema.FEATURE_VIDEOS)
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    joined = [np.concatenate(of_spec).tobytes() if of_spec else b"" for of_spec in frames]
    return pa.table({"segments": [sink.getvalue().to_pybytes()], "frames": [joined]}, schema=_PACK)


def _segment_row(segment: Segment) -> Row:
    return {
        "segment": segment.index,
        "is_last": segment.is_last,
        "num_frames": len(segment.timestamps_s),
        "timestamps_s": schema.pack_times(segment.timestamps_s),
        "start_s": segment.start_s,
        "duration_s": segment.duration_s,
        "decoded_share": segment.decoded_share,
        "warnings": list(segment.warnings),
    }

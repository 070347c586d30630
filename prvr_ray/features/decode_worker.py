"""The decoding worker of ingest: turns videos into packs of frames. Imports neither Ray nor torch.

A pack holds segments whose frames together fill a few forward passes of the encoder. It travels as one value, so that
micro-batches span several videos.

Shapes: F frames, H and W pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prvr_ray import schema
from prvr_ray.features.sources import open_parent
from prvr_ray.video.container import Limits
from prvr_ray.video.decoder_process import VideoDecoder
from prvr_ray.video.errors import VideoError
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import Segment

Row = dict[str, Any]

_PACK = pa.schema([("segments", pa.large_binary()), ("frames", pa.list_(pa.large_binary()))])


@dataclass(frozen=True)
class DecodePlan:
    """How to decode every video.

    specs: one frame spec for each distinct encoder input. min_decoded_share: a video with a segment below this fraction
    fails.
    """

    sampling: Sampling
    specs: tuple[FrameSpec, ...]
    limits: Limits
    timeout_s: float
    stall_s: float
    memory_bytes: int
    pack_frames: int
    anonymous: bool  # send no credentials to the videos' store
    min_decoded_share: float

    def load(self) -> VideoDecoder:
        """Make a decoder with these limits."""
        return VideoDecoder(timeout_s=self.timeout_s, stall_s=self.stall_s, memory_bytes=self.memory_bytes)


class DecodeVideos:
    """Turns pending videos into packs, using one long-lived child process."""

    def __init__(self, plan: DecodePlan):
        self._plan = plan
        self._decoder = plan.load()

    def __call__(self, videos: pa.Table) -> Iterator[pa.Table]:
        """Decode the videos of a table: video_id, uri, etag, added_at, missing, skip (existing segments)."""
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
        """Yield the segments of one video, each with its frames for every frame spec; a failure comes last."""
        identity = {name: video[name] for name in ("video_id", "etag", "added_at")}
        following = 0
        try:
            for segment in self._segments(video):
                self._check_share(segment)
                following = segment.index + 1
                yield identity | _segment_row(segment), segment.frames
        except VideoError as error:
            while following in video["skip"]:
                following += 1
            failure = {"segment": following, "is_last": True, "num_frames": 0}
            yield identity | failure | {"error_class": error.error_class, "error": str(error)}, []

    def _check_share(self, segment: Segment) -> None:
        least = self._plan.min_decoded_share
        if segment.decoded_share < least:
            raise VideoError(
                "partial",
                f"only {segment.decoded_share:.1%} of segment {segment.index} could be decoded; "
                f"ingest.min_decoded_share is {least:g}",
            )

    def _segments(self, video: Row) -> Iterator[Segment]:
        if video["missing"]:
            raise VideoError("download", video["missing"])
        store, key = open_parent(video["uri"], anonymous=self._plan.anonymous)
        try:
            with store.local_file(key) as path:
                with open(path, "rb"):
                    pass  # an unreadable file is a download failure; libav would call it damaged
                plan = self._plan
                yield from self._decoder.segments(str(path), plan.sampling, plan.specs, plan.limits, video["skip"])
        except OSError as error:
            raise VideoError("download", str(error)) from error


def _pack(rows: list[Row], frames: list[list[np.ndarray]]) -> pa.Table:
    """Make a pack: the rows, still without vectors, and for each frame spec the concatenated frames of all rows."""
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
        "start_s": 0.0,  # the timestamps are on the player's clock already
        "duration_s": segment.duration_s,
        "decoded_share": segment.decoded_share,
        "warnings": list(segment.warnings),
    }

"""Columns, pyarrow schemas and format version of every table that prvr_ray writes.

All vectors of a row are one `large_binary` value: float16, little endian, row-major (num_rows, dim). Nested lists of
floats take some twenty times as long to write. This module defines bytes and columns; it opens no files.
"""

import hashlib

import numpy as np
import pyarrow as pa

FORMAT_VERSION = 1
PARTIAL_BELOW = 0.95  # a video with a segment of a smaller decoded_share counts as partial

MOMENT = pa.struct([("video_id", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())])

VIDEOS = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),  # bytes
        ("etag", pa.string()),  # version of the source: S3 ETag, or mtime and size of a local file
        ("split", pa.string()),
        ("duration_s", pa.float64()),
        ("added_at", pa.float64()),  # seconds since the epoch: of several rows of one video the newest is live
        ("removed", pa.bool_()),  # a tombstone: `prvr remove`
        ("metadata", pa.string()),  # JSON: other columns of the manifest (prvr_ray.collection.metadata); null: none
    ]
)

QUERIES = pa.schema(
    [
        ("query_id", pa.string()),
        ("text", pa.string()),  # null: a tombstone of a removed caption
        ("video_ids", pa.list_(pa.string())),  # the relevant videos
        ("split", pa.string()),
        ("moments", pa.list_(MOMENT)),
    ]
)

IMPORTS = pa.schema(
    [
        ("source", pa.string()),  # `prvr import --name`
        ("layout", pa.string()),
        ("uri", pa.string()),
        ("imported_at", pa.float64()),  # seconds since the epoch: the rows of a source's latest import are live
        ("query_id", pa.string()),  # null: the source no longer has captions
    ]
)

FEATURE_VIDEOS = pa.schema(
    [
        ("video_id", pa.string()),
        ("etag", pa.string()),
        ("added_at", pa.float64()),  # copied from the row in VIDEOS whose file was read
        ("segment", pa.int32()),
        ("is_last", pa.bool_()),
        ("num_frames", pa.int32()),  # of the student's frames
        ("timestamps_s", pa.large_binary()),  # float64 little endian, (num_frames,); plus start_s: a player's time
        ("teacher", pa.large_binary()),  # float16 (num_teacher_frames, teacher dim), unnormalised
        (
            "student",
            pa.large_binary(),
        ),  # float16 (num_frames, student dim); null where spec.json says "shared"
        (
            "start_s",
            pa.float64(),
        ),  # 0; in older rows the container's time of the first frame, whose timestamp there is 0
        ("duration_s", pa.float64()),  # end of the video, on the clock of timestamps_s
        (
            "decoded_share",
            pa.float64(),
        ),  # decoded fraction of the segment's frames, times the fraction of the stream in the file
        ("warnings", pa.list_(pa.string())),
        ("error_class", pa.string()),  # null for success
        ("error", pa.string()),
    ]
)

FEATURE_QUERIES = pa.schema(
    [
        ("query_id", pa.string()),
        ("text_hash", pa.string()),  # of the encoded text: an edited caption is encoded again
        ("num_tokens", pa.int32()),
        ("teacher", pa.large_binary()),  # float16 (1, teacher dim), unnormalised
        ("student", pa.large_binary()),  # float16 (num_tokens, token dim)
    ]
)

INDEX = pa.schema(
    [
        ("video_id", pa.string()),
        ("etag", pa.string()),
        ("added_at", pa.float64()),
        ("window", pa.int32()),
        ("num_frames", pa.int32()),
        (
            "edges_s",
            pa.large_binary(),
        ),  # float64 (num_frames + 1): frame f spans [edges_s[f], edges_s[f + 1])
        (
            "inheritance",
            pa.large_binary(),
        ),  # float16 unit rows (num_frames, hidden dim); null without the branch
        ("exploration", pa.large_binary()),
        ("teacher", pa.large_binary()),  # likewise, (num_frames, teacher dim); null in a student's index
    ]
)

SCORES = pa.schema(
    [
        ("query_id", pa.string()),
        ("rank", pa.int32()),  # from 1
        ("video_id", pa.string()),
        ("score", pa.float32()),
        ("inheritance_score", pa.float32()),
        ("exploration_score", pa.float32()),
        ("peak_s", pa.float64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
    ]
)

# runs/<run>/evaluations/<split>-<protocol>.json holds what `prvr evaluate` prints. The table beside it has one row per
# query and row of the evaluation, from which confidence intervals, paired differences and examples are computed.
QUERY_RANKS = pa.schema(
    [
        ("query_id", pa.string()),
        ("row", pa.string()),  # teacher, inheritance, exploration, fused, teacher+student, chosen, chosen+hubness
        ("ranks", pa.list_(pa.int32())),  # of all relevant videos, from 1, ascending
        ("moment_ratio", pa.float64()),  # moment length / video length; null without an annotated moment
    ]
)


def pack_vectors(x_nD: np.ndarray) -> bytes:
    """Serialise the rows of a matrix as one float16 little-endian value.

    Args:
        x_nD: (num_rows, dim), any real dtype. Absolute values may not exceed float16's range (65,504).

    Returns:
        num_rows * dim * 2 bytes.

    Raises:
        ValueError: x_nD is not a matrix, or a value is not finite in float16.
    """
    if x_nD.ndim != 2:
        raise ValueError(f"vectors of shape {x_nD.shape}: expected (num_rows, dim)")
    with np.errstate(over="ignore"):
        half_nD = np.ascontiguousarray(x_nD, dtype="<f2")
    if not np.isfinite(half_nD).all():
        raise ValueError("vectors contain NaN, infinity or values beyond float16's range (65,504)")
    return half_nD.tobytes()


def unpack_vectors(value: bytes | memoryview | pa.Buffer | pa.Scalar, dim: int) -> np.ndarray:
    """Read what `pack_vectors` wrote, without a copy.

    Args:
        value: a value of a vector column, as bytes or as a pyarrow scalar.
        dim: features per row.

    Returns:
        (num_rows, dim) float16, a read-only view of the value.

    Raises:
        ValueError: the number of bytes is not a multiple of a row's.
    """
    return _view(value, "<f2").reshape(-1, dim)


def pack_times(times_n: np.ndarray) -> bytes:
    """Serialise times in seconds, (n,), as float64 little endian."""
    return np.ascontiguousarray(times_n, dtype="<f8").tobytes()


def unpack_times(value: bytes | memoryview | pa.Buffer | pa.Scalar) -> np.ndarray:
    """Read what `pack_times` wrote: (n,) float64, a view of the value."""
    return _view(value, "<f8")


def text_hash(text: str, files: str = "") -> str:
    """Hash a caption's text as its version; `files` is the version of the files of imported vectors, if any."""
    return hashlib.sha256(f"{files} {text}".encode() if files else text.encode()).hexdigest()[:16]


def _view(value: bytes | memoryview | pa.Buffer | pa.Scalar, dtype: str) -> np.ndarray:
    buffer = value.as_buffer() if isinstance(value, pa.Scalar) else value
    return np.frombuffer(buffer, dtype=dtype)

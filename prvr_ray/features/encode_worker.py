"""The encoding workers of ingest: turn packs of frames and captions into rows of the features tables.

Shapes: N queries, F frames, T tokens, D features, H and W pixels.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from prvr_ray import schema
from prvr_ray.devices import choose_device
from prvr_ray.encoders import Encoder, load_encoder
from prvr_ray.schema import pack_vectors, text_hash

Row = dict[str, Any]


@dataclass(frozen=True)
class EncodePlan:
    """Which encoders run: the teacher's, and the student's if it is a different one.

    inputs: for each encoder, the index of its frame spec in the pack.
    num_threads: of one encoder on the CPU.
    num_gpus: GPUs of the worker.
    """

    names: tuple[str, ...]
    inputs: tuple[int, ...]
    micro_batch: int
    num_threads: int
    num_gpus: float

    def load(self) -> list[Encoder]:
        """Load the encoders, on the worker's GPU if it has one."""
        torch.set_num_threads(self.num_threads)  # Ray sets one thread for a worker that reserves part of a CPU
        device = choose_device(self.num_gpus)
        return [load_encoder(name, device, micro_batch=self.micro_batch) for name in self.names]


class EncodePacks:
    """Turns packs into rows of the features table; all encoders are on one device."""

    def __init__(self, encoders: EncodePlan):
        warnings.filterwarnings("ignore", "The given (NumPy array|buffer) is not writable")  # frames are only read
        self._plan = encoders
        self._encoders = encoders.load()

    def __call__(self, packs: pa.Table) -> Iterator[pa.Table]:
        """Encode each pack's frames together."""
        for segments, frames in zip(packs["segments"], packs["frames"], strict=True):
            rows = pa.ipc.open_stream(segments.as_buffer()).read_all()
            yield self._encoded(rows, [value.as_buffer() for value in frames])

    def _encoded(self, rows: pa.Table, frames: list[pa.Buffer]) -> pa.Table:
        kept = rows.to_pylist()
        for column, encoder, index in zip(("teacher", "student"), self._encoders, self._plan.inputs, strict=False):
            frames_F3HW = np.frombuffer(frames[index], np.uint8).reshape(-1, 3, *encoder.spec.image_size)
            ends = np.cumsum([row["num_frames"] for row in kept])
            vectors = np.split(encoder.encode_frames(frames_F3HW), ends[:-1])
            kept = [_with_vectors(row, column, x_FD) for row, x_FD in zip(kept, vectors, strict=True)]
        return pa.Table.from_pylist(kept, schema=schema.FEATURE_VIDEOS)


class EncodeQueries:
    """Turns queries into rows of the features table: pooled teacher vectors and the student's token states."""

    def __init__(self, encoders: EncodePlan):
        self._encoders = encoders.load()

    def __call__(self, queries: pa.Table) -> pa.Table:
        texts = queries["text"].to_pylist()
        pooled_ND, states = self._encoders[0].encode_text(texts)
        if len(self._encoders) > 1:
            _, states = self._encoders[1].encode_text(texts)
        columns = {
            "query_id": queries["query_id"],
            "text_hash": [text_hash(text) for text in texts],
            "num_tokens": [len(states_TD) for states_TD in states],
            "teacher": [pack_vectors(vector_D[None]) for vector_D in pooled_ND],
            "student": [pack_vectors(states_TD) for states_TD in states],
        }
        return pa.table(columns, schema=schema.FEATURE_QUERIES)


def _with_vectors(row: Row, column: str, vectors_FD: np.ndarray) -> Row:
    """Add a column of vectors to a row; if float16 cannot represent them, the row becomes a failure."""
    if row["error_class"]:
        return row
    try:
        return {**row, column: pack_vectors(vectors_FD)}
    except ValueError as error:
        nothing = {"num_frames": 0, "timestamps_s": None, "teacher": None, "student": None}
        return {**row, **nothing, "error_class": "encode", "error": str(error)}

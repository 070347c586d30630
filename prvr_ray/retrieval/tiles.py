"""How windows are cut: into chunks, whose maxima are kept, and into tiles, which are multiplied at once.

Shape suffixes: Q queries, W windows, F frames of a window, K chunks of at most CHUNK rows of one window, C rows of a
chunk.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from prvr_ray.retrieval.blocks import spans

CHUNK = 8  # rows under one kept maximum: what the routine visits again for a selected pair


def chunk_maxima(products_WFQ: torch.Tensor, chunk_max_WKQ: torch.Tensor) -> None:
    """Write the maximum of every CHUNK frames, the last chunk of a window being shorter."""
    whole = products_WFQ.shape[1] // CHUNK
    if whole:
        chunks_WKCQ = products_WFQ[:, : whole * CHUNK].view(len(products_WFQ), whole, CHUNK, -1)
        torch.amax(chunks_WKCQ, 2, out=chunk_max_WKQ[:, :whole])
    if whole < chunk_max_WKQ.shape[1]:
        torch.amax(products_WFQ[:, whole * CHUNK :], 1, keepdim=True, out=chunk_max_WKQ[:, whole:])


def first_chunks(offsets: np.ndarray) -> np.ndarray:
    """The first chunk of each window, and the number of all chunks: (W + 1,)."""
    return np.concatenate([[0], np.cumsum(-(-np.diff(offsets) // CHUNK))])


def chunk_edges(offsets: np.ndarray, first_chunk: np.ndarray) -> np.ndarray:
    """Rows at which chunks begin, and the end: (K + 1,)."""
    place_K = np.arange(first_chunk[-1]) - np.repeat(first_chunk[:-1], np.diff(first_chunk))
    return np.append(np.repeat(offsets[:-1], np.diff(first_chunk)) + place_K * CHUNK, offsets[-1])


@dataclass(frozen=True)
class Run:
    """Windows of one length side by side: where they and their chunks lie among all, and their rows in the tile."""

    windows: slice
    chunks: slice
    rows: slice


@dataclass(frozen=True)
class Tile:
    """Windows [start, stop) that are multiplied at once."""

    start: int
    stop: int
    runs: list[Run]


def tiles(offsets: np.ndarray, first_chunk: np.ndarray, max_rows: int) -> list[Tile]:
    """Cut windows into tiles of at most max_rows rows, or one window each. Python's numbers: NumPy's slice slowly."""
    cuts = list(spans(offsets, max_rows))
    changes = np.flatnonzero(np.diff(offsets, n=2)) + 1
    edges = np.unique(np.concatenate([[start for start, _ in cuts], changes, [len(offsets) - 1]]))
    windows, chunks, rows = (
        [slice(low, high) for low, high in itertools.pairwise(places.tolist())]
        for places in (edges, first_chunk[edges], offsets[edges])
    )
    borders = np.searchsorted(edges, [start for start, _ in cuts] + [len(offsets) - 1]).tolist()
    found = []
    for (start, stop), (low, high) in zip(cuts, itertools.pairwise(borders), strict=True):
        first = rows[low].start
        in_tile = [slice(part.start - first, part.stop - first) for part in rows[low:high]]
        found.append(Tile(start, stop, list(map(Run, windows[low:high], chunks[low:high], in_tile))))
    return found

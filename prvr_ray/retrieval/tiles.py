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
    """Windows of one length side by side: where they, their chunks and their rows lie among all of a branch."""

    windows: slice
    chunks: slice
    rows: slice


def tiles(offsets: np.ndarray, first_chunk: np.ndarray, max_rows: int) -> list[list[Run]]:
    """Cut windows into tiles of at most max_rows rows, or one window each; a tile is its runs.

    Places are Python's numbers: tensors are sliced slowly by NumPy's.
    """
    starts = [start for start, _ in spans(offsets, max_rows)] + [len(offsets) - 1]
    edges = np.union1d(starts, np.flatnonzero(np.diff(offsets, n=2)) + 1)
    places = (
        itertools.starmap(slice, itertools.pairwise(cut.tolist()))
        for cut in (edges, first_chunk[edges], offsets[edges])
    )
    runs = list(map(Run, *places))
    return [runs[low:high] for low, high in itertools.pairwise(np.searchsorted(edges, starts).tolist())]

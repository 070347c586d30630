"""Cuts windows into chunks, of which only the maxima are kept, and into tiles, each of which is one matrix product.

Shape suffixes: Q queries, W windows, F frames of a window, K chunks of at most CHUNK rows of one window, C rows of a
chunk.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from prvr_ray.retrieval.blocks import spans

# Rows under one kept maximum. For a selected pair only the chunks that may hold its maximum get exact dot products:
# scoring whole windows instead cost 12 % of the product at k = 100 of 2,500 videos. Smaller chunks keep more maxima.
CHUNK = 8


def chunk_maxima(products_WFQ: torch.Tensor, chunk_max_WKQ: torch.Tensor) -> None:
    """Write the maximum of every CHUNK frames; the last chunk of a window may be shorter."""
    whole = products_WFQ.shape[1] // CHUNK  # these chunks are a view of the products, reduced in one call
    if whole:
        chunks_WKCQ = products_WFQ[:, : whole * CHUNK].view(len(products_WFQ), whole, CHUNK, -1)
        torch.amax(chunks_WKCQ, 2, out=chunk_max_WKQ[:, :whole])
    if whole < chunk_max_WKQ.shape[1]:
        torch.amax(products_WFQ[:, whole * CHUNK :], 1, keepdim=True, out=chunk_max_WKQ[:, whole:])


def first_chunks(offsets: np.ndarray) -> np.ndarray:
    """Return the first chunk of each window and, last, the number of all chunks: (W + 1,)."""
    return np.concatenate([[0], np.cumsum(-(-np.diff(offsets) // CHUNK))])


def chunk_edges(offsets: np.ndarray, first_chunk: np.ndarray) -> np.ndarray:
    """Return the row at which each chunk begins and, last, the number of all rows: (K + 1,)."""
    place_K = np.arange(first_chunk[-1]) - np.repeat(first_chunk[:-1], np.diff(first_chunk))
    return np.append(np.repeat(offsets[:-1], np.diff(first_chunk)) + place_K * CHUNK, offsets[-1])


@dataclass(frozen=True)
class Strip:
    """Adjacent windows of one length: the ranges of their windows, chunks and rows within a branch."""

    windows: slice
    chunks: slice
    rows: slice


def tiles(offsets: np.ndarray, first_chunk: np.ndarray, max_rows: int) -> list[list[Strip]]:
    """Cut windows into tiles of at most max_rows rows; a longer window is a tile alone. A tile is a list of strips.

    Offsets are Python ints: slicing tensors with NumPy ints is slow.
    """
    starts = [start for start, _ in spans(offsets, max_rows)] + [len(offsets) - 1]
    edges = np.union1d(starts, np.flatnonzero(np.diff(offsets, n=2)) + 1)  # tile borders, and changes of length
    slices = (
        itertools.starmap(slice, itertools.pairwise(cut.tolist()))
        for cut in (edges, first_chunk[edges], offsets[edges])
    )
    strips = list(map(Strip, *slices))
    return [strips[low:high] for low, high in itertools.pairwise(np.searchsorted(edges, starts).tolist())]

"""Windows cut into chunks and tiles, against a plain loop."""

import numpy as np
import pytest
import torch

from prvr_ray.retrieval.tiles import CHUNK, chunk_edges, chunk_maxima, first_chunks, tiles


def chunks_of(lengths):
    """(window, first row, stop row) of every chunk."""
    chunks, row = [], 0
    for window, length in enumerate(lengths):
        chunks += [(window, row + low, row + min(low + CHUNK, length)) for low in range(0, length, CHUNK)]
        row += length
    return chunks


@pytest.mark.parametrize("max_rows", [1, 7, 40, 1000])
@pytest.mark.parametrize("lengths", [[1], [8, 8, 8], [3, 3, 16, 17, 17, 17, 2, 90], [5] * 30 + [9] * 4])
def test_tiles_cover_every_window_once_in_runs_of_one_length(lengths, max_rows):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    first_chunk = first_chunks(offsets)
    chunks = chunks_of(lengths)
    assert chunk_edges(offsets, first_chunk).tolist() == [low for _, low, _ in chunks] + [sum(lengths)]

    cut = tiles(offsets, first_chunk, max_rows)
    stops = [strips[-1].windows.stop for strips in cut]
    assert [strips[0].windows.start for strips in cut] == [0, *stops[:-1]]
    assert stops[-1] == len(lengths)
    for strips in cut:
        start, stop = strips[0].windows.start, strips[-1].windows.stop
        rows, before = sum(lengths[start:stop]), sum(lengths[:start])
        assert rows <= max_rows or stop == start + 1
        assert [window for strip in strips for window in range(len(lengths))[strip.windows]] == list(range(start, stop))
        assert [row for strip in strips for row in range(sum(lengths))[strip.rows]] == list(
            range(before, before + rows)
        )
        for strip in strips:
            assert len(set(lengths[strip.windows])) == 1
            windows = range(len(lengths))[strip.windows]
            assert [chunk for chunk in chunks if chunk[0] in windows] == chunks[strip.chunks]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 23])
def test_chunk_maxima_take_every_frame(length):
    products = torch.randn(3, length, 5, generator=torch.Generator().manual_seed(length))
    kept = torch.full((3, -(-length // CHUNK), 5), torch.nan)
    chunk_maxima(products, kept)
    expected = [products[:, low : low + CHUNK].numpy().max(1) for low in range(0, length, CHUNK)]
    np.testing.assert_array_equal(kept.numpy(), np.stack(expected, axis=1))

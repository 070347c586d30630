"""Moments on curves that can be worked out by hand, and curves against plain products."""

import numpy as np
import pytest
from support.ragged_worlds import as_blocks, ragged_world, unit_rows

from prvr_ray.retrieval.moments import branch_curves, fuse_curves, locate


def moment(curve, edges=None, threshold=0.5):
    row = np.array([curve], dtype=np.float32)
    edges = np.arange(len(curve) + 1.0) if edges is None else np.array(edges)
    found = locate(row, edges, np.array([0]), threshold)
    return found.peak_s[0], found.start_s[0], found.end_s[0]


def test_the_run_above_half_height_around_the_peak_is_the_moment():
    assert moment([0, 0, 0, 6, 10, 7, 0, 0, 9, 0]) == (4.5, 3, 6)


def test_a_moment_at_either_end_stops_at_the_window():
    assert moment([10, 8, 0, 0, 0]) == (0.5, 0, 2)
    assert moment([0, 0, 0, 8, 10]) == (4.5, 3, 5)


def test_times_follow_uneven_frame_edges():
    assert moment([0, 0, 10, 9, 0], [0, 1, 5, 6, 10, 30]) == (5.5, 5, 10)


def test_a_flat_curve_and_a_single_frame_are_one_whole_moment():
    assert moment([3, 3, 3]) == (0.5, 0, 3)
    assert moment([3]) == (0.5, 0, 1)


def test_the_threshold_narrows_the_moment():
    curve = [0, 0, 0, 4, 8, 10, 8, 4, 0, 0, 0]
    assert moment(curve, threshold=0.3) == (5.5, 3, 8)
    assert moment(curve, threshold=0.9) == (5.5, 5, 6)


def test_frames_past_a_windows_end_do_not_count():
    curves = np.array([[0, 10, -np.inf, -np.inf], [0, 0, 0, 10]], dtype=np.float32)
    found = locate(curves, np.concatenate([np.arange(3.0), np.arange(5.0)]), np.array([0, 3]), 0.5)
    assert found.start_s.tolist() == [1, 3]
    assert found.end_s.tolist() == [2, 4]


def test_no_pairs_no_moments():
    assert locate(np.zeros((0, 1), np.float32), np.zeros(0), np.zeros(0, np.int64), 0.5).peak_s.shape == (0,)


def test_fused_curves_equal_weighted_products_of_the_named_windows():
    rng = np.random.default_rng(0)
    rows = ragged_world(rng, 12, 12, (16,))
    world = [(owner, [frames, frames[::-1].copy()]) for owner, (frames,) in rows]
    (block,) = as_blocks(world, [12])
    queries = [(weight, unit_rows(rng, (5, 16))) for weight in (0.7, -0.3)]
    query_P, window_P = rng.integers(0, 5, 40), rng.integers(0, 12, 40)
    rows_QD = [rows for _, rows in queries]
    curves = fuse_curves((0.7, -0.3), branch_curves(rows_QD, block, query_P, window_P))
    for curve, query, window in zip(curves, query_P, window_P, strict=True):
        expected = sum(
            w * (f.astype(np.float64) @ q[query]) for (w, q), f in zip(queries, world[window][1], strict=True)
        )
        np.testing.assert_allclose(curve[: len(expected)], expected, atol=1e-6)
        assert np.isneginf(curve[len(expected) :]).all()


def test_branches_with_other_frames_have_no_fused_curve():
    rng = np.random.default_rng(1)
    (block,) = as_blocks(ragged_world(rng, 5, 5, (8, 8)), [5])
    with pytest.raises(ValueError, match="same frames in every branch"):
        branch_curves([unit_rows(rng, (1, 8))] * 2, block, np.array([0]), np.array([0]))

"""Windows cover every frame and moment of a video, whatever its frame rate."""

import numpy as np
import pytest

from prvr_ray.retrieval.windows import cut_windows, frame_edges, sample_starts
from prvr_ray.student.batching import sample_uniform


def test_a_video_within_the_limit_is_one_window_in_both_modes():
    times = np.arange(5.0)
    for windowing in ("whole", "windows"):
        (window,) = cut_windows(times, 5.0, limit=5, windowing=windowing)
        assert (window.start, window.stop) == (0, 5)
        assert window.edges_s.tolist() == [0, 0.5, 1.5, 2.5, 3.5, 5.0]


@pytest.mark.parametrize("n", [9, 10, 11, 27, 128, 129])
@pytest.mark.parametrize(("limit", "overlap"), [(8, 0), (8, 3), (8, 7), (1, 0)])
def test_cuts_have_the_limit_cover_all_frames_and_overlap_as_asked(n, limit, overlap):
    times = np.cumsum(np.random.default_rng(n).uniform(0.1, 2, n))
    windows = cut_windows(times, None, limit=limit, windowing="windows", overlap=overlap)
    assert [window.stop - window.start for window in windows] == [limit] * len(windows)
    assert windows[0].start == 0
    assert windows[-1].stop == n
    steps = np.diff([window.start for window in windows])
    assert (steps[:-1] == limit - overlap).all()
    assert (steps > 0).all()
    assert (steps <= limit - overlap).all()
    edges = frame_edges(times, None)
    for window in windows:
        np.testing.assert_array_equal(window.edges_s, edges[window.start : window.stop + 1])


@pytest.mark.parametrize("n", [129, 200, 255, 256, 257, 1000])
def test_whole_windows_name_the_frames_that_the_students_sampling_averages(n):
    """Sampling a ramp of frame numbers shows which frames went into each output."""
    starts = sample_starts(n, 128)
    stops = [*starts[1:], n - 1]
    expected = [np.arange(a, max(b, a + 1)).mean() for a, b in zip(starts, stops, strict=True)]
    np.testing.assert_allclose(sample_uniform(np.arange(n, dtype=np.float32)[:, None], 128)[:, 0], expected)
    (window,) = cut_windows(np.arange(n) * 0.5, n * 0.5, limit=128, windowing="whole")
    assert len(window.edges_s) == 129
    assert window.edges_s[0] == 0
    assert window.edges_s[-1] == n * 0.5
    assert (np.diff(window.edges_s) > 0).all()


def test_each_frame_lasts_while_it_is_the_nearest():
    edges = frame_edges(np.array([0.0, 1.0, 4.0]), 6.0)
    assert edges.tolist() == [0, 0.5, 2.5, 6.0]
    assert frame_edges(np.array([0.0, 1.0, 4.0]), None).tolist() == [0, 0.5, 2.5, 5.5]
    assert frame_edges(np.array([2.0]), 3.0).tolist() == [0, 3.0]
    assert frame_edges(np.array([20.0, 21.0, 24.0]), 26.0).tolist() == [19.5, 20.5, 22.5, 26]  # a late start
    assert frame_edges(np.array([0.04, 1.04]), 2.0).tolist() == [0, 0.54, 2]
    assert np.isnan(frame_edges(np.full(3, np.nan), None)).tolist() == [True] * 4


def test_no_frames_make_no_windows_and_nonsense_is_refused():
    assert cut_windows(np.zeros(0), 3.0, limit=4, windowing="windows") == []
    with pytest.raises(ValueError, match="overlap by 4; use 0 to 3"):
        cut_windows(np.arange(9.0), None, limit=4, windowing="windows", overlap=4)
    with pytest.raises(ValueError, match="whole, windows"):
        cut_windows(np.arange(9.0), None, limit=4, windowing="cut")

"""Hubness against plain sorting."""

import numpy as np
import pytest

from prvr_ray.retrieval.hubness import hubness, sample_queries


@pytest.mark.parametrize(("num_queries", "neighbours"), [(50, 10), (10, 10), (4, 10), (50, 1)])
def test_it_is_the_mean_of_the_highest_scores(num_queries, neighbours):
    scores_QV = np.random.default_rng(num_queries).standard_normal((num_queries, 7)).astype(np.float32)
    expected = [sorted(column, reverse=True)[:neighbours] for column in scores_QV.T.astype(float).tolist()]
    np.testing.assert_allclose(hubness(scores_QV, neighbours), [np.mean(values) for values in expected], rtol=1e-6)


def test_without_queries_no_video_is_a_hub():
    np.testing.assert_array_equal(hubness(np.zeros((0, 3)), 10), np.zeros(3))


def test_no_neighbours_are_refused():
    with pytest.raises(ValueError, match="use 1 or more"):
        hubness(np.zeros((2, 3)), 0)


def test_a_sample_does_not_depend_on_the_order_and_takes_all_of_few():
    ids = [f"q{i}" for i in range(30)]
    drawn = sample_queries(ids, 10, seed=1)
    assert drawn == sample_queries(ids[::-1], 10, seed=1)
    assert len(set(drawn)) == 10
    assert drawn != sample_queries(ids, 10, seed=2)
    assert sample_queries(ids[::-1], 30, seed=1) == sorted(ids)

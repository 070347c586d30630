"""Ranks by counting against ranks of the full matrix, with ties, split videos and several relevant videos."""

import numpy as np
import pytest
import torch
from support.ragged_worlds import as_blocks, brute_force_scores, ragged_world, unit_rows
from torch.utils._python_dispatch import TorchDispatchMode

from prvr_ray.retrieval import scoring
from prvr_ray.retrieval.metrics import ranks
from prvr_ray.retrieval.ranking import rank_by_counting


def coarse_world(rng, num_windows, num_videos, dims):
    """Vectors of few exact values: dot products are exact in any precision, and ties abound."""
    world = ragged_world(rng, num_windows, num_videos, dims, max_frames=4)
    return [(owner, [np.round(rows * 4).astype(np.float16) / 4 for rows in branches]) for owner, branches in world]


def coarse_queries(rng, num_queries, dims, weights):
    return [
        (weight, (np.round(unit_rows(rng, (num_queries, dim)) * 4) / 4).astype(np.float32))
        for weight, dim in zip(weights, dims, strict=True)
    ]


def count(queries, blocks, relevant, mode="exact"):
    weightings = {"all": [weight for weight, _ in queries]}
    return rank_by_counting([rows for _, rows in queries], blocks, relevant, weightings, mode)["all"]


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("sizes", [[70], [3, 11], [1]])
def test_counting_equals_ranks_of_the_full_matrix_with_ties_and_split_videos(mode, sizes, monkeypatch):
    monkeypatch.setattr(scoring, "_GROUP_ROWS", 40)
    monkeypatch.setattr(scoring, "_QUERY_BLOCK", {"cpu": 7})
    rng = np.random.default_rng(0)
    dims, weights = (6, 6), (0.5, 0.25)
    world = coarse_world(rng, 70, 30, dims)
    queries = coarse_queries(rng, 40, dims, weights)
    video_ids, scores_QV = brute_force_scores(queries, world)
    columns = [rng.choice(30, size=rng.integers(0, 5), replace=False).tolist() for _ in range(40)]
    relevant = [[video_ids[column] for column in own] for own in columns]
    weightings = {"fused": weights, "first": (1, 0), "second": (0, -0.5)}
    found = rank_by_counting([rows for _, rows in queries], as_blocks(world, sizes), relevant, weightings, mode)
    assert len({score for row in scores_QV for score in row.tolist()}) < scores_QV.size / 4  # ties abound
    for name, own in weightings.items():
        weighted = [(weight, rows) for weight, (_, rows) in zip(own, queries, strict=True)]
        expected = ranks(brute_force_scores(weighted, world)[1], columns)
        assert [r.tolist() for r in found[name]] == [r.tolist() for r in expected]


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_ranks_agree_with_search(mode):
    rng = np.random.default_rng(1)
    world = ragged_world(rng, 60, 40, (32,))
    queries = [(1.0, unit_rows(rng, (20, 32)))]
    blocks = as_blocks(world, [25])
    answers = scoring.search(queries, blocks, 40).video_ids
    chosen = [ids[place] for place, ids in enumerate(answers)]
    found = count(queries, blocks, [[video_id] for video_id in chosen], mode)
    assert [r.tolist() for r in found] == [[place + 1] for place in range(20)]


def test_a_relevant_video_that_is_not_there_ranks_behind_all():
    rng = np.random.default_rng(2)
    world = ragged_world(rng, 9, 9, (8,))
    queries = [(1.0, unit_rows(rng, (2, 8)))]
    found = count(queries, as_blocks(world, [4]), [["lost"], ["lost", "v0003"]])
    assert found[0].tolist() == [10]
    assert found[1][-1] == 10
    assert found[1][0] <= 9


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_nothing_to_rank(mode):
    rng = np.random.default_rng(3)
    queries = [(1.0, unit_rows(rng, (2, 8)))]
    assert [r.tolist() for r in count(queries, [], [["a"], []], mode)] == [[1], []]
    assert count([(1.0, np.zeros((0, 8)))], as_blocks(ragged_world(rng, 3, 3, (8,)), [3]), [], mode) == []
    blocks = as_blocks(ragged_world(rng, 3, 3, (8,)), [3])
    assert [r.tolist() for r in count(queries, blocks, [["a"], []], mode)] == [[4], []]


class Largest(TorchDispatchMode):
    """Watches every tensor that torch makes."""

    num_values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tensors = [item for item in (made if isinstance(made, tuple | list) else [made]) if torch.is_tensor(item)]
        self.num_values = max([self.num_values, *(tensor.numel() for tensor in tensors)])
        return made


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_no_tensor_grows_with_the_number_of_videos(mode, monkeypatch):
    """However many videos: no (queries, videos) matrix is ever there."""
    monkeypatch.setattr(scoring, "_GROUP_ROWS", 60)
    rng = np.random.default_rng(5)
    queries = [(1.0, unit_rows(rng, (100, 8)))]
    largest = {}
    for num_videos in (100, 3000):
        world = ragged_world(rng, num_videos, num_videos, (8,), max_frames=4)
        with Largest() as watched:
            count(queries, as_blocks(world, [40]), [["v0001"]] * 100, mode)
        largest[num_videos] = watched.num_values
    assert largest[3000] <= 1.5 * largest[100] < 3000 * 100 / 4


def test_unusable_input_is_refused():
    rng = np.random.default_rng(4)
    queries, blocks = [(1.0, unit_rows(rng, (2, 8)))], as_blocks(ragged_world(rng, 3, 3, (8,)), [3])
    with pytest.raises(ValueError, match="two passes"):
        count(queries, iter(blocks), [["a"], ["b"]])
    with pytest.raises(ValueError, match="2 queries, but relevant videos of 1"):
        count(queries, blocks, [["a"]])

"""Metrics against the golden file, a slow ranking, and numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prvr_ray.retrieval.metrics import (
    moment_recall,
    ranks,
    summarize,
    summarize_by_ratio,
)

GOLDEN = Path(__file__).parents[1] / "data" / "dldkd_golden.npz"


def slow_ranks(scores_V, columns):
    """Sort by (score descending, irrelevant first) and read the places off."""
    order = sorted(range(len(scores_V)), key=lambda v: (-scores_V[v], v in columns))
    return [place for place, v in enumerate(order, 1) if v in columns]


def test_golden_metrics_are_reproduced():
    golden = np.load(GOLDEN)
    found = summarize(ranks(golden["metrics/scores"], [[v] for v in golden["metrics/target"]]))
    names = ["r1", "r5", "r10", "r100", "medr", "meanr", "map"]
    np.testing.assert_allclose([found[name] for name in names], golden["metrics/r1_r5_r10_r100_medr_meanr_map"])
    assert found["sumr"] == pytest.approx(28 + 63.33333333 + 80 + 100)


@pytest.mark.parametrize("to_input", [np.asarray, torch.from_numpy])
def test_ranks_equal_a_sort_with_ties_against_the_relevant_videos(to_input):
    rng = np.random.default_rng(0)
    scores_QV = rng.integers(0, 4, (40, 12)).astype(np.float32)
    relevant = [sorted(rng.choice(12, size=rng.integers(1, 5), replace=False).tolist()) for _ in range(40)]
    found = ranks(to_input(scores_QV), relevant)
    assert [r.tolist() for r in found] == [slow_ranks(s, c) for s, c in zip(scores_QV, relevant, strict=True)]


def test_a_constant_score_ranks_the_relevant_video_last():
    assert ranks(np.zeros((1, 7)), [[3]])[0].tolist() == [7]


def test_many_relevant_videos_by_hand():
    found = summarize([np.array([1, 3, 12])])
    assert found["r1"] == 100  # one video can be found among the first one, and it is
    assert found["r5"] == pytest.approx(100 * 2 / 3)
    assert found["r100"] == 100
    assert found["medr"] == found["meanr"] == 1
    assert found["map"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 12) / 3)


def test_queries_without_relevant_videos_have_no_ranks_and_are_refused_in_a_summary():
    found = ranks(np.zeros((2, 3)), [[0], []])
    assert found[1].tolist() == []
    with pytest.raises(ValueError, match="relevant video for every query"):
        summarize(found)
    with pytest.raises(ValueError, match="at least one query"):
        summarize([])


@pytest.mark.parametrize(
    ("scores", "relevant", "match"),
    [
        (np.array([[0.0, np.nan]]), [[0]], "NaN"),
        (np.zeros((1, 2)), [[2]], r"\[2\] of 2 videos"),
        (np.zeros((1, 2)), [[-1]], "of 2 videos"),
        (np.zeros((2, 2)), [[0]], "2 queries"),
    ],
)
def test_unusable_input_is_refused(scores, relevant, match):
    with pytest.raises(ValueError, match=match):
        ranks(scores, relevant)


def test_ratio_groups_hold_their_upper_border_and_skip_unannotated_queries():
    found = summarize_by_ratio([np.array([r]) for r in (1, 2, 3, 4)], np.array([0.2, 0.3, np.nan, 1.0]))
    assert {name: (group["queries"], group["medr"]) for name, group in found.items()} == {
        "0.0-0.2": (1, 1),
        "0.2-0.4": (1, 2),
        "0.4-1.0": (1, 4),
    }


def test_groups_of_fine_ratios_have_names_of_their_own():
    found = summarize_by_ratio([np.array([1])] * 3, np.array([0.005, 0.02, 0.5]), [0.01, 0.04])
    assert {name: group["queries"] for name, group in found.items()} == {"0.0-0.01": 1, "0.01-0.04": 1, "0.04-1.0": 1}


def test_moment_recall_by_hand():
    spans = np.array([[0.0, 10.0], [5.0, 6.0], [np.nan, np.nan]])
    annotated = [np.array([[5.0, 10.0], [20.0, 30.0]]), np.array([[7.0, 8.0]]), np.array([[0.0, 1.0]])]
    third = pytest.approx(100 / 3)
    assert moment_recall(spans, annotated) == {"r1_iou0.3": third, "r1_iou0.5": third, "r1_iou0.7": 0}
    assert moment_recall(np.zeros((0, 2)), []) == {}

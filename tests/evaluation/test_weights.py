"""The choice of weights against plain loops with scipy's minimiser, and where it must lean on the teacher."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from prvr_ray.evaluation.weights import ValidationScores, choose_weights, fit_temperature

OWN = {"inheritance": 0.7, "exploration": 0.3}


def world(seed=0, num_videos=30, per_video=3, student_noise=0.8, teacher_noise=0.8, windows_per_video=1):
    """Queries of every video; each side sees the right video's best window through noise of its own."""
    rng = np.random.default_rng(seed)
    num_queries, num_windows = num_videos * per_video, num_videos * windows_per_video
    video_of_query_Q = np.repeat(np.arange(num_videos), per_video)
    truth_QW = np.zeros((num_queries, num_windows))
    truth_QW[np.arange(num_queries), video_of_query_Q * windows_per_video] = 1.0
    scale = {"inheritance": 1.0, "exploration": 1.0, "teacher": 0.05}  # a teacher's cosines lie close together
    noise = {"inheritance": student_noise, "exploration": student_noise, "teacher": teacher_noise}
    branches = {name: scale[name] * (truth_QW + noise[name] * rng.standard_normal(truth_QW.shape)) for name in noise}
    video_of_window_W = np.repeat(np.arange(num_videos), windows_per_video)
    return ValidationScores(branches, video_of_window_W, [[video] for video in video_of_query_Q.tolist()])


def plain_scores(scores, weights):
    """(Q, V) by loops."""
    num_queries = len(scores.relevant)
    found = np.full((num_queries, scores.num_videos), -np.inf)
    for query in range(num_queries):
        for window, video in enumerate(scores.video_of_window_W):
            value = sum(weight * scores.branches_QW[name][query, window] for name, weight in weights.items())
            found[query, video] = max(found[query, video], value)
    return found


def plain_entropies(scores_QV, relevant):
    """Each query's cross-entropy at the temperature that scipy finds."""

    def at(log_temperature):
        return np.array(
            [-log_softmax(row / np.exp(log_temperature))[list(columns)].mean()
             for row, columns in zip(scores_QV, relevant, strict=True)]
        )  # fmt: skip

    found = minimize_scalar(lambda x: at(x).mean(), bounds=(-6.9, 6.9), method="bounded", options={"xatol": 1e-6})
    return np.exp(found.x), at(found.x)


@pytest.mark.parametrize("windows_per_video", [1, 3])
def test_the_choice_follows_its_recipe_as_plain_loops_compute_it(windows_per_video):
    scores = world(num_videos=12, windows_per_video=windows_per_video)
    choice = choose_weights(scores, OWN)
    spread = {
        "student": plain_scores(scores, OWN).std(axis=1).mean(),
        "teacher": plain_scores(scores, {"teacher": 1.0}).std(axis=1).mean(),
    }
    entropies = {}
    for step in range(21):
        fraction = step / 20
        weights = {name: (1 - fraction) * weight / spread["student"] for name, weight in OWN.items()}
        weights["teacher"] = fraction / spread["teacher"]
        entropies[fraction] = plain_entropies(plain_scores(scores, weights), scores.relevant)[1], weights
    best = min(entropies, key=lambda fraction: entropies[fraction][0].mean())
    clusters = [videos[0] for videos in scores.relevant]
    allowed = []
    for fraction, (values, _) in entropies.items():
        difference = values - entropies[best][0]
        sums = [sum(difference[q] - difference.mean() for q, c in enumerate(clusters) if c == video)
                for video in sorted(set(clusters))]  # fmt: skip
        num = len(sums)
        error = np.sqrt(num / (num - 1) * np.sum(np.square(sums))) / len(difference)
        if difference.mean() <= error:
            allowed.append(fraction)
    assert choice.teacher_fraction == max(allowed)
    weights = entropies[max(allowed)][1]
    expected = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    assert choice.weights == pytest.approx(expected)
    found = [candidate.cross_entropy for candidate in choice.candidates]
    assert found == pytest.approx([values.mean() for values, _ in entropies.values()], abs=1e-5)


def test_the_temperature_is_the_one_that_scipy_finds():
    rng = np.random.default_rng(3)
    scores_QV = rng.standard_normal((40, 9))
    relevant = [rng.choice(9, size=1 + q % 3, replace=False).tolist() for q in range(40)]
    scores_QV[np.arange(40), [columns[0] for columns in relevant]] += 1.5
    temperature, loss_Q = fit_temperature(scores_QV, relevant)
    expected_temperature, expected_Q = plain_entropies(scores_QV, relevant)
    assert temperature == pytest.approx(expected_temperature, rel=0.01)
    np.testing.assert_allclose(loss_Q.mean(), expected_Q.mean(), atol=1e-6)


def test_a_useless_teacher_gets_little_and_a_useless_student_gets_nothing():
    assert choose_weights(world(num_videos=200, teacher_noise=50.0, student_noise=0.5), OWN).teacher_fraction <= 0.1
    alone = choose_weights(world(num_videos=200, teacher_noise=0.3, student_noise=50.0), OWN)
    assert alone.teacher_fraction == 1.0
    assert alone.weights == {"inheritance": 0.0, "exploration": 0.0, "teacher": 1.0}


def test_with_less_evidence_the_teacher_gets_no_less():
    """A few queries cannot tell mixtures apart; averaged over draws, so that no single draw decides."""
    few, many = (
        np.mean([choose_weights(world(seed, num_videos=n), OWN).teacher_fraction for seed in range(12)])
        for n in (6, 120)
    )
    assert few > many


def test_the_unit_of_a_branch_changes_nothing_but_its_weight():
    scores = world()
    larger = {name: (100 if name == "teacher" else 1) * values for name, values in scores.branches_QW.items()}
    first = choose_weights(scores, OWN)
    second = choose_weights(ValidationScores(larger, scores.video_of_window_W, scores.relevant), OWN)
    assert first.teacher_fraction == second.teacher_fraction
    ratios = [choice.weights["teacher"] / choice.weights["inheritance"] for choice in (first, second)]
    assert ratios[0] == pytest.approx(100 * ratios[1])


@pytest.mark.parametrize("kind", ["one video", "constant"])
def test_where_nothing_can_be_chosen_the_runs_own_weights_stay(kind):
    scores = world(num_videos=4)
    if kind == "one video":
        scores = ValidationScores(scores.branches_QW, scores.video_of_window_W, [[2]] * len(scores.relevant))
    else:
        flat = {**scores.branches_QW, "teacher": np.full_like(scores.branches_QW["teacher"], 0.5)}
        scores = ValidationScores(flat, scores.video_of_window_W, scores.relevant)
    choice = choose_weights(scores, OWN)
    assert choice.weights == pytest.approx({**OWN, "teacher": 0.0})
    assert ("single video" if kind == "one video" else "same score") in choice.reason

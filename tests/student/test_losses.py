"""Losses against the published implementation's numbers, and where it fails."""

import math

import numpy as np
import pytest
import torch

from prvr_ray.student.losses import frame_distillation_loss, nce_loss, soft_target_nce_loss, triplet_loss


def _leaf(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, requires_grad=True)


def _assert_golden(loss: torch.Tensor, scores: torch.Tensor, expected_loss: np.ndarray, expected_grad: np.ndarray):
    loss.backward()
    np.testing.assert_allclose(loss.item(), expected_loss, rtol=1e-5)
    np.testing.assert_allclose(scores.grad, expected_grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("case", range(2))
def test_triplet_loss_is_the_published_one(golden, case):
    c = f"triplet/{case}"
    scores = _leaf(golden[f"{c}/scores"])
    loss = triplet_loss(scores, golden[f"{c}/labels"], float(golden[f"{c}/margin"]), hard_pool_size=1)
    _assert_golden(loss, scores, golden[f"{c}/loss"], golden[f"{c}/grad"])


@pytest.mark.parametrize("case", range(6))
def test_hard_nce_is_the_published_one(golden, case):
    scores = _leaf(golden[f"soft_nce/{case}/scores"])
    loss = nce_loss(scores, golden[f"soft_nce/{case}/labels"])
    _assert_golden(loss, scores, golden[f"hard_nce/{case}/loss"], golden[f"hard_nce/{case}/grad"])


@pytest.mark.parametrize("case", range(6))
def test_soft_nce_is_the_published_one(golden, case):
    c = f"soft_nce/{case}"
    scores = _leaf(golden[f"{c}/scores"])
    alpha, beta = golden[f"{c}/alpha_beta"]
    loss = soft_target_nce_loss(scores, golden[f"{c}/soft_scores"], golden[f"{c}/labels"], alpha, beta)
    _assert_golden(loss, scores, golden[f"{c}/loss"], golden[f"{c}/grad"])


@pytest.mark.parametrize("case", range(6))
def test_soft_nce_with_its_own_undetached_targets_is_the_published_one(golden, case):
    c = f"soft_nce/{case}"
    scores = _leaf(golden[f"{c}/scores"])
    alpha, beta = golden[f"{c}/alpha_beta"]
    loss = soft_target_nce_loss(scores, scores, golden[f"{c}/labels"], alpha, beta)
    _assert_golden(loss, scores, golden[f"{c}/self_loss"], golden[f"{c}/self_grad"])


def test_frame_distillation_is_the_published_one(golden):
    own = golden["kl/labels"]
    queries = np.arange(len(own))
    student = _leaf(golden["kl/student_frames"])
    loss = frame_distillation_loss(
        student[queries, :, own], golden["kl/teacher_frames"][queries, :, own], golden["kl/mask"][own]
    )
    _assert_golden(loss, student, golden["kl/loss"], golden["kl/grad"])


def _triplet_one_by_one(scores: np.ndarray, labels: np.ndarray, margin: float) -> float:
    """Both directions with the single hardest negative, as METHOD.md writes them."""
    num_queries, num_videos = scores.shape
    to_video = [
        max(0, margin + max(scores[q, v] for v in range(num_videos) if v != labels[q]) - scores[q, labels[q]])
        for q in range(num_queries)
    ]
    to_text = [
        max(0, margin + scores[labels != v, v].max() - scores[labels == v, v].mean())
        for v in range(num_videos)
        if (labels == v).any()
    ]
    return float(np.mean(to_video) + np.mean(to_text))


def test_triplet_skips_videos_without_a_query():
    scores = np.random.default_rng(0).normal(size=(5, 4))
    labels = np.array([0, 0, 2, 3, 3])
    expected = _triplet_one_by_one(scores, labels, 0.2)
    assert triplet_loss(scores, labels, 0.2, 1).item() == pytest.approx(expected, rel=1e-12)


def test_triplet_draws_uniformly_from_the_pool_of_hardest_negatives():
    scores = torch.tensor([[0.0, 0.9, 0.8, 0.7, 0.1]], dtype=torch.float64)  # the query's own video is column 0
    generator = torch.Generator().manual_seed(0)
    drawn = [triplet_loss(scores, torch.tensor([0]), 0.2, 3, generator).item() for _ in range(3000)]
    values, counts = np.unique(np.round(drawn, 6), return_counts=True)
    np.testing.assert_allclose(values, [0.9, 1.0, 1.1])  # margin + 0.7, 0.8, 0.9; never 0.1
    assert counts.min() > 900


def test_triplet_takes_a_pool_larger_than_the_batch():
    assert math.isfinite(triplet_loss(np.eye(3), np.arange(3), 0.2, 20).item())


def test_a_pool_larger_than_the_batch_holds_every_negative():
    scores = torch.tensor([[0.0, 0.9, 0.1]], dtype=torch.float64)  # the query's own video is column 0
    generator = torch.Generator().manual_seed(0)
    drawn = {round(triplet_loss(scores, torch.tensor([0]), 0.2, 20, generator).item(), 6) for _ in range(50)}
    assert drawn == {1.1, 0.3}  # margin + 0.9, margin + 0.1


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 2), (0, 0), (0, 3)])
def test_one_query_one_video_or_nothing_gives_finite_losses_and_gradients(shape):
    labels = torch.zeros(shape[0], dtype=torch.int64)
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = (
        triplet_loss(scores, labels, 0.2, 20)
        + nce_loss(scores, labels)
        + soft_target_nce_loss(scores, scores, labels, 0.5, 0.5)
        + frame_distillation_loss(scores, scores.detach(), torch.ones(shape))
    )
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(scores.grad).all()


def test_one_video_has_no_negatives_and_so_no_loss():
    scores, labels = np.array([[0.3], [-0.2]]), np.array([0, 0])
    assert triplet_loss(scores, labels, 0.2, 20).item() == 0
    assert nce_loss(scores, labels).item() == pytest.approx(0, abs=1e-7)


def test_hard_rows_stay_in_the_loss_when_alpha_gives_no_hard_video():
    """Published: for 0 < alpha < 1/V the hard text rows vanish, because no video row is hard."""
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(4), 5)
    scores, soft_scores = _leaf(rng.normal(size=(20, 4))), rng.normal(size=(20, 4))
    alpha, beta = 0.2, 0.5  # 4 hard queries, no hard video
    loss = soft_target_nce_loss(scores, soft_scores, labels, alpha, beta)
    loss.backward()

    x = scores.detach().numpy()
    one_hot = np.eye(4)[labels]
    p_text = np.exp(soft_scores) / np.exp(soft_scores).sum(1, keepdims=True)
    p_video = np.exp(soft_scores) / np.exp(soft_scores).sum(0)
    cross = -(x - np.log(np.exp(x).sum(1, keepdims=True)))
    hard_text = (one_hot * cross).sum(1)[:4].mean()
    soft_text = (((1 - beta) * p_text + beta * one_hot) * cross).sum(1)[4:].mean()
    y_video = (1 - beta) * p_video + beta * one_hot
    soft_video = (np.log(np.exp(x).sum(0)) - np.log((np.exp(x) * (y_video + 1e-12)).sum(0))).mean()
    expected = alpha * hard_text + (1 - alpha) * (soft_text + soft_video)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_a_negative_that_leads_by_forty_keeps_its_gradient():
    """Published: log(Y + 1e-12) lets a negative that leads by more than 27.6 stand in for the positive."""
    scores = _leaf(np.array([[0.0, 0.0], [40.0, 0.0]]))
    loss = nce_loss(scores, np.array([0, 1]))
    loss.backward()
    # Column 0: LSE(0, 40) - 0 = 40. Row 1: LSE(40, 0) - 0 = 40. The others give log 2 each. Means of two.
    assert loss.item() == pytest.approx((40 + 40 + 2 * math.log(2)) / 2, rel=1e-9)
    assert scores.grad[0, 0] == pytest.approx(-0.5 - 0.25, rel=1e-9)  # its column pulls with all its force


def test_videos_without_a_query_are_left_out_of_nce():
    rng = np.random.default_rng(3)
    labels = np.array([0, 0, 2])
    scores = rng.normal(size=(3, 3))
    text = np.mean([np.log(np.exp(scores[q]).sum()) - scores[q, labels[q]] for q in range(3)])
    video = np.mean([np.log(np.exp(scores[:, v]).sum()) - np.log(np.exp(scores[labels == v, v]).sum()) for v in (0, 2)])
    assert nce_loss(scores, labels).item() == pytest.approx(text + video, rel=1e-9)


def test_distillation_of_a_fully_masked_query_is_zero_and_padding_is_inert():
    rng = np.random.default_rng(4)
    student, teacher = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    s, t = np.exp(student[0, :2] / 0.2), np.exp(teacher[0, :2] / 0.2)
    s, t = s / s.sum(), t / t.sum()
    expected = (t * (np.log(t) - np.log(s))).sum()
    student[0, 2], teacher[0, 2] = 1e6, np.nan  # padding may hold anything
    assert frame_distillation_loss(student, teacher, mask).item() == pytest.approx(expected, rel=1e-9)


# Three queries about five videos; the first is about videos 0 and 3, so it has a row for each.
SEVERAL = np.array([0, 3, 1, 4])
RELEVANT = np.array([[1, 0, 0, 1, 0], [1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]], bool)


def _log_sum_exp(values: list[float]) -> float:
    return math.log(sum(math.exp(value) for value in values))


def test_another_relevant_video_is_no_negative_of_the_triplet_loss():
    scores = np.random.default_rng(5).normal(size=(4, 5))
    to_video, to_text = [], []
    for n, own in enumerate(SEVERAL):
        hardest = max(scores[n, v] for v in range(5) if not RELEVANT[n, v])
        to_video.append(max(0, 0.2 + hardest - scores[n, own]))
    for v in (0, 1, 3, 4):
        negatives = [scores[n, v] for n in range(4) if not RELEVANT[n, v]]
        to_text.append(max(0, 0.2 + max(negatives) - np.mean([scores[n, v] for n in range(4) if SEVERAL[n] == v])))
    found = triplet_loss(scores, SEVERAL, 0.2, 1, relevant_NV=RELEVANT)
    assert found.item() == pytest.approx(np.mean(to_video) + np.mean(to_text), rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 0.6), (0.0, 0.3)])
def test_another_relevant_video_takes_no_part_in_the_nce_losses(alpha, beta):
    rng = np.random.default_rng(6)
    scores, soft = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    hard_text, soft_text, hard_video, soft_video = [], [], [], []
    for n, own in enumerate(SEVERAL):
        kept = [v for v in range(5) if v == own or not RELEVANT[n, v]]
        total = _log_sum_exp([scores[n, v] for v in kept])
        soft_total = _log_sum_exp([soft[n, v] for v in kept])
        is_hard = n < math.floor(alpha * 4)
        weight = {
            v: float(v == own) if is_hard else (1 - beta) * math.exp(soft[n, v] - soft_total) + beta * (v == own)
            for v in kept
        }
        (hard_text if is_hard else soft_text).append(sum(weight[v] * (total - scores[n, v]) for v in kept))
    for v in range(5):
        own = [n for n in range(4) if SEVERAL[n] == v]
        kept = [n for n in range(4) if n in own or not RELEVANT[n, v]]
        if not own:
            continue
        total = _log_sum_exp([scores[n, v] for n in kept])
        if v < math.floor(alpha * 5):
            hard_video.append(total - _log_sum_exp([scores[n, v] for n in own]))
            continue
        soft_total = _log_sum_exp([soft[n, v] for n in kept])
        weight = {n: (1 - beta) * math.exp(soft[n, v] - soft_total) + beta * (n in own) for n in kept}
        soft_video.append(total - _log_sum_exp([scores[n, v] + math.log(weight[n] + 1e-12) for n in kept]))
    mean = lambda values: float(np.mean(values)) if values else 0.0  # noqa: E731
    expected = alpha * (mean(hard_text) + mean(hard_video)) + (1 - alpha) * (mean(soft_text) + mean(soft_video))
    found = soft_target_nce_loss(scores, soft, SEVERAL, alpha, beta, relevant_NV=RELEVANT)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    if alpha == 1:
        assert nce_loss(scores, SEVERAL, relevant_NV=RELEVANT).item() == pytest.approx(expected, rel=1e-9)


def test_perfect_scores_cost_nothing_where_a_query_has_several_relevant_videos():
    perfect = torch.tensor(np.where(RELEVANT, 1.0, -1.0) * 40, requires_grad=True)
    loss = triplet_loss(perfect, SEVERAL, 0.2, 20, relevant_NV=RELEVANT) + nce_loss(perfect, SEVERAL, RELEVANT)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert perfect.grad.abs().max() < 1e-12


def test_a_query_that_every_video_of_a_batch_is_relevant_to_has_finite_losses_and_gradients():
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)
    labels, relevant = torch.tensor([0, 1, 2]), torch.ones(3, 3, dtype=torch.bool)
    loss = triplet_loss(scores, labels, 0.2, 20, relevant_NV=relevant)
    loss = loss + soft_target_nce_loss(scores, scores, labels, 0.5, 0.5, relevant)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(scores.grad).all()


def test_the_draw_of_a_query_with_few_negatives_is_uniform_among_them():
    scores = torch.tensor([[0.0, 0.9, 0.8, 0.7, 0.1]], dtype=torch.float64)
    relevant = torch.tensor([[True, False, True, True, False]])
    generator = torch.Generator().manual_seed(0)
    drawn = [triplet_loss(scores, torch.tensor([0]), 0.2, 3, generator, relevant).item() for _ in range(1000)]
    values, counts = np.unique(np.round(drawn, 6), return_counts=True)
    np.testing.assert_allclose(values, [0.3, 1.1])
    assert counts.min() > 440


def test_losses_are_bit_equal_where_each_query_has_one_relevant_video():
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 0, 1, 2, 3, 3])
    relevant = torch.nn.functional.one_hot(labels, 4).bool()
    assert torch.equal(nce_loss(scores, labels), nce_loss(scores, labels, relevant))
    soft = soft_target_nce_loss(scores, scores, labels, 0.5, 0.7)
    assert torch.equal(soft, soft_target_nce_loss(scores, scores, labels, 0.5, 0.7, relevant))
    assert torch.equal(triplet_loss(scores, labels, 0.2, 1), triplet_loss(scores, labels, 0.2, 1, None, relevant))

"""The whole objective against the published one, and the settings that depart from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.published import load_published, published_name

from prvr_ray.config import TrainSettings
from prvr_ray.student.batching import Batch
from prvr_ray.student.exchange import Exchange
from prvr_ray.student.model import Layout, Student
from prvr_ray.student.objective import EpochWeights, batch_losses
from prvr_ray.student.scores import OwnFrames

SETTINGS = TrainSettings(margin=0.2, hard_pool_size=1)
WEIGHTS = EpochWeights(distillation=0.77, alpha=0.7, beta=0.65)


@pytest.fixture
def model(golden) -> Student:
    student = Student(12, 10, hidden_dim=16, num_heads=4, max_frames=10, max_tokens=7)
    load_published(student, golden, "model/state")
    return student.eval()


@pytest.fixture
def batch(golden) -> Batch:
    given = {key.removeprefix("model/in/"): torch.tensor(golden[key]) for key in golden if "model/in/" in key}
    frames = Layout.from_mask(given["student_videos_mask"])
    tokens = Layout.from_mask(given["student_text_mask"])
    return Batch(
        video_of_query_N=given["text_labels"],
        owner_of_video_V=np.zeros(6, dtype=np.int64),
        owner_of_query_N=np.zeros(12, dtype=np.int64),
        frames_RD=frames.unpad(given["student_videos"]),
        teacher_frames_RD=frames.unpad(given["teacher_videos"]),
        frame_layout=frames,
        tokens_RD=tokens.unpad(given["student_text"]),
        token_layout=tokens,
        teacher_queries_ND=given["teacher_text"],
        own=OwnFrames.of(given["text_labels"], frames),
        relevant_NV=None,
    )


def _gradients(model: Student, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_loss_part_and_every_gradient_is_the_published_one(golden, model, batch):
    loss, parts = batch_losses(model, batch, SETTINGS, WEIGHTS, Exchange())
    published = {
        "inheritance_triplet": "inher_trip",
        "inheritance_nce": "inher_nce",
        "exploration_triplet": "explore_trip",
        "exploration_nce": "explore_nce",
        "distillation": "kl",
    }
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(
        {ours: float(golden[f"model/loss/{theirs}"]) for ours, theirs in published.items()}, rel=1e-5
    )
    assert loss.item() == pytest.approx(float(golden["model/loss/loss_overall"]), rel=1e-5)
    for name, grad in _gradients(model, loss).items():
        expected = golden[f"model/grad/{published_name(name)}"]
        tolerance = 1e-4 * np.abs(expected).max() + 1e-8
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("videos_per_pass", [1, 2, 4])
def test_encoding_in_passes_keeps_loss_and_gradients(model, batch, videos_per_pass):
    whole, _ = batch_losses(model, batch, SETTINGS, WEIGHTS, Exchange())
    expected = _gradients(model, whole)
    settings = SETTINGS.model_copy(update={"videos_per_pass": videos_per_pass})
    loss, _ = batch_losses(model, batch, settings, WEIGHTS, Exchange())
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    for name, grad in _gradients(model, loss).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-6)


def test_encoding_in_passes_keeps_few_activations(model, batch):
    """Bytes saved for the backward pass: with one video a pass, far less than with all at once."""

    def saved_bytes(videos_per_pass: int) -> int:
        sizes = []
        settings = SETTINGS.model_copy(update={"videos_per_pass": videos_per_pass})

        def pack(x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.numel() * x.element_size())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            batch_losses(model, batch, settings, WEIGHTS, Exchange())
        return sum(sizes)

    assert saved_bytes(1) < 0.3 * saved_bytes(0)


def test_detached_soft_targets_change_gradients_but_not_the_loss(model, batch):
    loss, _ = batch_losses(model, batch, SETTINGS, WEIGHTS, Exchange())
    faithful = _gradients(model, loss)
    settings = SETTINGS.model_copy(update={"detach_soft_targets": True})
    detached_loss, _ = batch_losses(model, batch, settings, WEIGHTS, Exchange())
    detached = _gradients(model, detached_loss)
    assert detached_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    name = "branches.exploration.video_output.weight"
    assert not torch.allclose(faithful[name], detached[name], rtol=1e-3)
    name = "branches.inheritance.video_output.weight"
    torch.testing.assert_close(faithful[name], detached[name])


def test_mean_reduction_divides_the_distillation_by_the_queries(model, batch):
    _, summed = batch_losses(model, batch, SETTINGS, WEIGHTS, Exchange())
    settings = SETTINGS.model_copy(update={"distillation_reduction": "mean"})
    _, mean = batch_losses(model, batch, settings, WEIGHTS, Exchange())
    assert mean["distillation"].item() == pytest.approx(summed["distillation"].item() / 12, rel=1e-6)


def test_logit_scale_scores_do_not_depend_on_the_teacher_vectors_length(model, batch):
    settings = SETTINGS.model_copy(update={"teacher_scores": "logit_scale"})
    shrunk = replace(
        batch, teacher_frames_RD=batch.teacher_frames_RD / 7, teacher_queries_ND=batch.teacher_queries_ND / 3
    )
    parts = [batch_losses(model, b, settings, WEIGHTS, Exchange())[1]["inheritance_nce"] for b in (batch, shrunk)]
    torch.testing.assert_close(*parts)
    raw = [batch_losses(model, b, SETTINGS, WEIGHTS, Exchange())[1]["inheritance_nce"] for b in (batch, shrunk)]
    assert abs(raw[0] - raw[1]) > 1e-5


def test_without_teacher_terms_the_teacher_is_not_read(model, batch):
    settings = SETTINGS.model_copy(update={"distillation_weight": 0.0, "inheritance_soft_targets": False})
    blind = replace(batch, teacher_frames_RD=batch.teacher_frames_RD * torch.nan)
    loss, parts = batch_losses(model, blind, settings, WEIGHTS, Exchange())
    assert torch.isfinite(loss)
    assert "distillation" not in parts


@pytest.mark.parametrize("branch", ["inheritance", "exploration"])
def test_one_branch_alone_has_the_same_parts_as_beside_the_other(model, batch, branch):
    _, both = batch_losses(model, batch, SETTINGS, WEIGHTS, Exchange())
    del model.branches["exploration" if branch == "inheritance" else "inheritance"]
    _, alone = batch_losses(model, batch, SETTINGS, WEIGHTS, Exchange())
    expected = {name: part for name, part in both.items() if name.startswith(branch)}
    if branch == "inheritance":
        expected["distillation"] = both["distillation"]
    torch.testing.assert_close(alone, expected)

"""The model against the published one's encodings, and what padding and small inputs do to it."""

import numpy as np
import pytest
import torch
from support.published import load_published

from prvr_ray.student.model import Layout, Student


@pytest.fixture
def published(golden) -> Student:
    """The small student with the published weights."""
    model = Student(12, 10, hidden_dim=16, num_heads=4, max_frames=10, max_tokens=7)
    load_published(model, golden, "model/state")
    return model.eval()


def _inputs(golden):
    return {name: torch.tensor(golden[f"model/in/{name}"]) for name in ("student_videos", "student_text")} | {
        name: torch.tensor(golden[f"model/in/{name}"]) for name in ("student_videos_mask", "student_text_mask")
    }


def test_encodings_are_the_published_ones(golden, published):
    batch = _inputs(golden)
    frames = published.encode_frames(batch["student_videos"], batch["student_videos_mask"])
    queries = published.encode_queries(batch["student_text"], batch["student_text_mask"])
    mask = golden["model/in/student_videos_mask"].astype(bool)
    for branch in ("inheritance", "exploration"):
        expected = golden[f"model/out/{branch}_frames"]
        np.testing.assert_allclose(frames[branch].detach()[mask], expected[mask], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(queries[branch].detach(), golden[f"model/out/{branch}_query"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dims", "count"), [((3072, 768), 5_755_392), ((1024, 1024), 4_371_968)])
def test_parameter_counts_are_the_published_ones(dims, count):
    assert sum(p.numel() for p in Student(*dims).parameters()) == count


def test_initial_weights_follow_the_publication():
    torch.manual_seed(0)
    model = Student(64, 48)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert module.weight.mean().item() == pytest.approx(0, abs=0.004), name
        if isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            assert (module.bias == 0).all()


def test_padding_is_inert(published):
    torch.manual_seed(0)
    videos, mask = torch.randn(3, 10, 12), torch.zeros(3, 10)
    for video, length in enumerate((4, 10, 1)):
        mask[video, :length] = 1
    together = published.encode_frames(videos.masked_fill(mask[..., None] == 0, torch.nan), mask)
    for video, length in enumerate((4, 10, 1)):
        alone = published.encode_frames(videos[video : video + 1, :length], torch.ones(1, length))
        for branch, frames in together.items():
            torch.testing.assert_close(frames[video, :length], alone[branch][0], rtol=1e-5, atol=1e-6)
            assert (frames[video, length:] == 0).all()


def test_a_mask_with_holes_keeps_positions(published):
    torch.manual_seed(0)
    videos = torch.randn(1, 10, 12)
    holed = torch.ones(1, 10)
    holed[0, 3] = 0
    junk = videos.clone()
    junk[0, 3] = 1e6
    expected = published.encode_frames(videos, holed)["inheritance"]
    torch.testing.assert_close(published.encode_frames(junk, holed)["inheritance"], expected)
    squeezed = published.encode_frames(videos[:, holed[0].bool()], torch.ones(1, 9))["inheritance"]
    assert not torch.allclose(
        squeezed[0, 3:], expected[0, 4:]
    )  # a frame after the hole has its own place, not the hole's


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1), (0, 1), (0, 0)])
def test_one_query_one_token_or_nothing_encodes_in_training(shape):
    model = Student(12, 10, hidden_dim=16, max_frames=10, max_tokens=7)
    queries = model.encode_queries(torch.randn(*shape, 10), torch.ones(shape))
    frames = model.encode_frames(torch.randn(*shape, 12), torch.ones(shape))
    sum(x.sum() for x in [*queries.values(), *frames.values()]).backward()
    assert queries["inheritance"].shape == (shape[0], 16)
    assert frames["exploration"].shape == (*shape, 16)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_query_without_tokens_is_a_zero_vector_beside_others(published):
    tokens = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    queries = published.encode_queries(tokens, torch.tensor([[1, 1, 1], [0, 0, 0]]))["inheritance"]
    assert (queries[1] == 0).all()
    torch.testing.assert_close(queries[:1], published.encode_queries(tokens[:1], torch.ones(1, 3))["inheritance"])


def test_too_long_sequences_and_bad_heads_are_refused():
    model = Student(12, 10, hidden_dim=16, max_frames=4, max_tokens=7)
    with pytest.raises(ValueError, match="5 frames is longer than max_frames=4"):
        model.encode_frames(torch.randn(1, 5, 12), torch.ones(1, 5))
    with pytest.raises(ValueError, match="num_heads=5 does not divide hidden_dim=16"):
        Student(12, 10, hidden_dim=16, num_heads=5)


def test_layout_splits_into_parts_that_cover_all_rows():
    layout = Layout.from_lengths(torch.tensor([3, 1, 4, 1, 5]))
    parts = layout.split(2)
    assert [(rows.start, rows.stop, part.num_sequences) for rows, part in parts] == [(0, 8, 3), (8, 14, 2)]
    assert parts[1][1].position_R.tolist() == [0, 0, 1, 2, 3, 4]

"""Recalls after an epoch against full score matrices, ranked by sorting; several workers stand in test_training.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.student_splits import QUIET, STUDENT, make_split

from prvr_ray.retrieval.metrics import ranks, summarize
from prvr_ray.student import validation
from prvr_ray.student.batching import BatchReader
from prvr_ray.student.exchange import Exchange
from prvr_ray.student.training import create_state
from prvr_ray.student.validation import Validation


@pytest.fixture
def cache(tmp_path):
    """Nine videos; every third query has a second relevant video, and one video stands there twice: ties."""
    cache = make_split(tmp_path / "split", 9)
    twin = {name: getattr(cache, name) for name in ("frames", "teacher_frames")}
    for name, array in twin.items():
        starts, lengths = array.starts.copy(), array.lengths.copy()
        starts[4], lengths[4] = starts[3], lengths[3]
        twin[name] = replace(array, starts=starts, lengths=lengths)
    queries = np.arange(0, len(cache.query_ids), 3)
    pairs = sorted({*zip(cache.pair_video_P.tolist(), cache.pair_query_P.tolist(), strict=True)}
                   | {(int(query) % 9, int(query)) for query in queries})  # fmt: skip
    video_P, query_P = np.array(pairs).T
    return replace(
        cache, **twin, pair_video_P=np.ascontiguousarray(video_P), pair_query_P=np.ascontiguousarray(query_P)
    )


def best_cosines(queries_QD: np.ndarray, videos: list[np.ndarray]) -> np.ndarray:
    """(Q, V) float64."""
    unit = [
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.asarray(v, np.float64) for v in [queries_QD, *videos])
    ]
    return np.stack([(unit[0] @ frames_FD.T).max(1) for frames_FD in unit[1:]], axis=1)


def items(array) -> list[np.ndarray]:
    return [np.asarray(array.take(np.array([item]))[0], np.float32) for item in range(len(array.lengths))]


@pytest.mark.parametrize("rows_per_pass", [validation._TEACHER_ROWS_PER_PASS, 5])
def test_all_rows_equal_ranks_of_whole_matrices_by_sorting(cache, rows_per_pass, monkeypatch):
    monkeypatch.setattr(validation, "_TEACHER_ROWS_PER_PASS", rows_per_pass)
    settings = QUIET.model_copy(update={"precision": "float64"})
    model = create_state(cache, STUDENT, settings, 3, "cpu").model
    for parameter in model.parameters():  # at N(0, 0.02) all frames would look the same
        parameter.data.mul_(20) if parameter.ndim > 1 else None
    evaluation = Validation(BatchReader(cache, dtype=torch.float64), STUDENT, Exchange())
    model.eval()
    with torch.inference_mode():
        frames = [
            model.encode_frames(torch.tensor(x)[None].double(), torch.ones(1, len(x))) for x in items(cache.frames)
        ]
        queries = [
            model.encode_queries(torch.tensor(x)[None].double(), torch.ones(1, len(x))) for x in items(cache.tokens)
        ]
    matrices = {
        branch: best_cosines(
            np.concatenate([q[branch].numpy() for q in queries]), [v[branch][0].numpy() for v in frames]
        )
        for branch in ("inheritance", "exploration")
    }
    matrices["fused"] = 0.7 * matrices["inheritance"] + 0.3 * matrices["exploration"]
    matrices["teacher"] = best_cosines(np.concatenate(items(cache.teacher_queries)), items(cache.teacher_frames))
    pairs = list(zip(cache.pair_query_P, cache.pair_video_P, strict=True))
    relevant = [[video for query, video in pairs if query == number] for number in range(len(cache.query_ids))]
    expected = {row: summarize(ranks(scores_QV.round(12), relevant)) for row, scores_QV in matrices.items()}
    found = {"teacher": evaluation.teacher(), **evaluation.student(model)}
    assert found == {row: pytest.approx(figures) for row, figures in expected.items()}
    assert len({len(videos) for videos in relevant}) > 1
    assert len({figures["sumr"] for figures in expected.values()}) > 2  # or the rows would show nothing


def test_the_teachers_frames_of_long_videos_are_never_held_together(cache, monkeypatch):
    monkeypatch.setattr(validation, "_TEACHER_ROWS_PER_PASS", 5)
    held = []

    class Recording(BatchReader):
        def take(self, array, taken):
            if array is cache.teacher_frames:
                held.append(array.lengths[taken])
            return super().take(array, taken)

    Validation(Recording(cache), STUDENT, Exchange()).teacher()
    assert sum(map(len, held)) == len(cache.video_ids)
    assert all(lengths.sum() <= 5 or len(lengths) == 1 for lengths in held)


def test_scores_that_are_no_numbers_are_refused(cache):
    model = create_state(cache, STUDENT, QUIET, 3, "cpu").model
    with torch.no_grad():
        model.branches["exploration"].video_output.bias[0] = torch.nan
    with pytest.raises(ValueError, match="scores hold NaN"):
        Validation(BatchReader(cache), STUDENT, Exchange()).student(model)

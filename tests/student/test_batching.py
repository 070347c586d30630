import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.student_splits import STUDENT, make_split

from prvr_ray.student.batching import (
    BatchReader,
    align,
    cut_tokens,
    draw_batches,
    normalize,
    prefetch,
    resample,
    sample_uniform,
)
from prvr_ray.student.cache import QueryRows, VideoRows, read_cache, write_cache


@pytest.mark.parametrize("n", [4, 10, 13, 27, 31])
def test_sampling_and_normalising_are_the_published_ones(golden, n):
    x = golden[f"sampling/{n}/in"]
    np.testing.assert_allclose(sample_uniform(x, 10), golden[f"sampling/{n}/out"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(normalize(x), golden[f"sampling/{n}/l2"], rtol=1e-5)


def test_sampling_takes_tensors_and_leaves_short_sequences_alone():
    x = torch.arange(12.0).view(4, 3)
    assert (sample_uniform(x, 4) == x.numpy()).all()
    assert sample_uniform(x, 2).shape == (2, 3)
    assert sample_uniform(np.empty((0, 3)), 2).shape == (0, 3)


def test_resampling_upwards_repeats_rows_in_order():
    x = np.array([[1.0], [2.0], [3.0]])
    # Edges round(i / 6 * 3), half to even, at most 2: 0 0 1 2 2 2 2.
    assert resample(x, 6)[:, 0].tolist() == [1, 1, 2, 3, 3, 3]


def test_alignment_brings_the_teacher_to_the_student_and_as_published_the_reverse():
    student, teacher = np.eye(12), np.arange(1, 6.0)[:, None]
    frames, aligned = align(student, teacher, limit=10)
    assert frames == pytest.approx(normalize(sample_uniform(student, 10)))  # as it is seen when indexed
    assert len(aligned) == 10
    assert (np.diff(aligned[:, 0]) >= 0).all()
    frames, aligned = align(student, teacher, limit=10, faithful=True)
    assert len(frames) == 5
    assert (aligned == teacher).all()


def _shortened(rows: list[np.ndarray], limit: int) -> list[np.ndarray]:
    """METHOD's sampling, one output at a time; a sequence that is short enough stays as it is."""
    if len(rows) <= limit:
        return rows
    edges = [min(round(i / limit * len(rows)), len(rows) - 1) for i in range(limit + 1)]
    return [sum(rows[start:stop]) / (stop - start) if stop > start else rows[start] for start, stop in pairwise(edges)]


@pytest.mark.parametrize(
    ("num_student", "num_teacher"),
    [(300, 60), (60, 100), (100, 60), (300, 200), (200, 300), (128, 128), (1, 7), (7, 1), (129, 128), (500, 129)],
)
def test_faithful_alignment_is_the_published_one(num_student, num_teacher):
    """Published: the stored student frames are shortened to the teacher's number, then to the limit, never lengthened;
    the student's mask says how many of the teacher's count."""
    rng = np.random.default_rng(num_student * 1000 + num_teacher)
    student, teacher = rng.normal(size=(num_student, 5)), rng.normal(size=(num_teacher, 3))
    expected = _shortened(_shortened(list(student), num_teacher), 128)
    expected = [row / (np.linalg.norm(row) + 1e-5) for row in expected]
    frames, aligned = align(student, teacher, limit=128, faithful=True)
    np.testing.assert_allclose(frames, expected, atol=2e-6)
    np.testing.assert_allclose(aligned, _shortened(list(teacher), 128)[: len(expected)], atol=2e-6)


def test_a_batch_names_every_relevant_video_of_its_queries(tmp_path):
    frames, tokens = np.ones((2, 3)), np.ones((2, 4))
    videos = [VideoRows(name, frames, frames) for name in ("a", "b", "c")]
    queries = [QueryRows("p", ["a", "c"], tokens, frames[0]), QueryRows("q", ["b"], tokens, frames[0])]
    write_cache(tmp_path, videos, queries)
    batch = BatchReader(read_cache(tmp_path)).read(np.array([2, 1, 0]))
    assert batch.video_of_query_N.tolist() == [0, 1, 2]
    assert batch.relevant_NV.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    for rank in range(2):  # every worker computes the whole loss
        part = BatchReader(read_cache(tmp_path), rank=rank, world_size=2).read(np.array([2, 1, 0]))
        assert torch.equal(part.relevant_NV, batch.relevant_NV)
    assert BatchReader(make_split(tmp_path / "single", 4)).read(np.arange(4)).relevant_NV is None


def test_an_epoch_visits_every_video_once_and_differs_from_the_next():
    videos = np.arange(100, 117)
    batches = draw_batches(videos, 5, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [5, 5, 5, 2]
    assert sorted(np.concatenate(batches)) == list(videos)
    again = np.concatenate(draw_batches(videos, 5, seed=1, epoch=0))
    assert (again == np.concatenate(batches)).all()
    assert (again != np.concatenate(draw_batches(videos, 5, seed=1, epoch=1))).any()


def test_a_batch_holds_its_videos_captions_rich_first(tmp_path):
    cache = make_split(tmp_path / "split", 9)
    videos = np.array([4, 1, 7, 3, 8])
    batch = BatchReader(cache).read(videos)
    counts = torch.bincount(batch.video_of_query_N).tolist()
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == sum(len(cache.queries_of(videos[i : i + 1])[0]) for i in range(5))
    unsorted = BatchReader(cache, sort_by_captions=False).read(videos)
    expected = np.concatenate([np.asarray(cache.frames.take(videos[i : i + 1])[0]) for i in range(5)])
    assert (unsorted.frames_RD.numpy() == expected).all()
    assert unsorted.frames_RD.shape[0] == unsorted.teacher_frames_RD.shape[0]


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_workers_share_a_batch_without_overlap(tmp_path, world_size):
    cache = make_split(tmp_path / "split", 9)
    videos = np.array([4, 1, 7, 3, 8])
    whole = BatchReader(cache).read(videos)
    parts = [BatchReader(cache, rank=r, world_size=world_size).read(videos) for r in range(world_size)]
    assert sum(len(part.frames_RD) for part in parts) == len(whole.frames_RD)
    assert sum(len(part.tokens_RD) for part in parts) == len(whole.tokens_RD)
    assert sum(len(part.own.row_K) for part in parts) == len(whole.own.row_K)
    for part in parts:
        assert torch.equal(part.video_of_query_N, whole.video_of_query_N)
        assert torch.equal(part.teacher_queries_ND, whole.teacher_queries_ND)
    first = whole.frame_layout.lengths_S[0]
    assert torch.equal(parts[0].frames_RD[:first], whole.frames_RD[:first])


def test_frames_fit_the_student(tmp_path):
    cache = make_split(tmp_path / "split", 9)
    assert cache.frames.lengths.max() == STUDENT.max_frames
    norms = np.linalg.norm(np.asarray(cache.frames.values_nD, dtype=np.float32), axis=1)
    assert norms == pytest.approx(1, abs=2e-3)  # float16


def test_prefetch_keeps_order_works_ahead_and_passes_errors_on():
    made, third = [], threading.Event()

    def make(i):
        if i == 5:
            raise RuntimeError("five")
        made.append(i)
        if i == 2:
            third.set()
        return i

    results = prefetch(make, range(10), depth=2)
    assert next(results) == 0
    assert third.wait(timeout=10)  # made ahead of being asked for
    time.sleep(0.05)
    assert made == [0, 1, 2]  # and no further
    assert [next(results) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="five"):
        next(results)


@pytest.mark.parametrize(
    ("length", "keep_last", "kept"),
    [(5, True, [0, 1, 2, 4]), (5, False, [0, 1, 2, 3]), (4, True, [0, 1, 2, 3]), (0, True, [])],
)
def test_a_long_caption_of_a_causal_tower_keeps_its_first_tokens_and_the_last(length, keep_last, kept):
    assert cut_tokens(np.arange(length)[:, None], 4, keep_last).ravel().tolist() == kept

import threading
import time

import numpy as np
import pytest
import torch
from splits import STUDENT, make_split

from prvr_ray.student.batching import (
    BatchReader,
    align,
    epoch_batches,
    normalize,
    prefetch,
    resample,
    sample_uniform,
)


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


def test_an_epoch_visits_every_video_once_and_differs_from_the_next():
    videos = np.arange(100, 117)
    batches = epoch_batches(videos, 5, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [5, 5, 5, 2]
    assert sorted(np.concatenate(batches)) == list(videos)
    again = np.concatenate(epoch_batches(videos, 5, seed=1, epoch=0))
    assert (again == np.concatenate(batches)).all()
    assert (again != np.concatenate(epoch_batches(videos, 5, seed=1, epoch=1))).any()


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

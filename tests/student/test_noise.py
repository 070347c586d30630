"""Noise makes the teacher worse, as much as asked, and the same at every reading."""

from pathlib import Path

import numpy as np
import pytest

from prvr_ray.student.cache import FeatureCache, QueryRows, VideoRows, open_cache, write_cache
from prvr_ray.student.noise import degrade_teacher


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    rng = np.random.default_rng(0)
    videos = [VideoRows(f"v{n}", rng.normal(size=(n + 1, 8)), rng.normal(size=(n + 1, 256))) for n in range(5)]
    queries = [QueryRows(f"q{n}", [f"v{n}"], rng.normal(size=(3, 8)), rng.normal(size=256)) for n in range(5)]
    return open_cache(tmp_path / "cache", lambda folder: write_cache(folder, videos, queries))


def test_noise_has_the_length_that_was_asked_for(cache: FeatureCache) -> None:
    everything = np.arange(5)
    for name in ("teacher_frames", "teacher_queries"):
        clean, lengths = getattr(cache, name).take(everything)
        noisy, noisy_lengths = getattr(degrade_teacher(cache, 2.0), name).take(everything)
        ratios = np.linalg.norm(noisy - clean, axis=1) / np.linalg.norm(clean.astype(np.float32), axis=1)
        assert ratios == pytest.approx(np.full(len(clean), 2.0), rel=0.2)
        assert noisy_lengths.tolist() == lengths.tolist()


def test_noise_is_the_same_at_every_reading_and_different_for_each_item(cache: FeatureCache) -> None:
    noisy = degrade_teacher(cache, 1.0).teacher_frames
    whole, _ = noisy.take(np.arange(5))
    alone, _ = noisy.take(np.array([3]))
    assert np.array_equal(whole[6:10], alone)
    clean, _ = cache.teacher_frames.take(np.arange(5))
    directions = (whole - clean) / np.linalg.norm(whole - clean, axis=1, keepdims=True)
    others = directions @ directions.T - np.eye(len(directions))
    assert np.abs(others).max() < 0.5


def test_the_student_reads_the_same_and_no_noise_changes_nothing(cache: FeatureCache) -> None:
    assert degrade_teacher(cache, 0.0) is cache
    noisy = degrade_teacher(cache, 1.0)
    assert noisy.frames is cache.frames
    assert noisy.tokens is cache.tokens
    rows, lengths = noisy.teacher_frames.take(np.array([], dtype=np.int64))
    assert rows.shape == (0, 256)
    assert len(lengths) == 0

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from prvr_ray.student.cache import QueryRows, VideoRows, open_cache, read_cache, write_cache

VIDEOS = [
    VideoRows("b", np.full((2, 3), 2.0), np.full((4, 5), 20.0)),
    VideoRows("a", np.full((1, 3), 1.0), np.full((1, 5), 10.0)),
    VideoRows("c", np.full((3, 3), 3.0), np.full((3, 5), 30.0)),
]
QUERIES = [
    QueryRows("q2", ["c", "a"], np.full((2, 4), 0.2), np.full(5, 2.0)),
    QueryRows("q1", ["a"], np.full((1, 4), 0.1), np.full(5, 1.0)),
]


def _write(folder: Path, videos=VIDEOS, queries=QUERIES) -> None:
    folder.mkdir(exist_ok=True)
    write_cache(folder, iter(videos), iter(queries))


def test_what_was_written_is_read_in_the_order_of_ids(tmp_path):
    _write(tmp_path / "cache")
    cache = read_cache(tmp_path / "cache")
    assert (cache.video_ids, cache.query_ids) == (["a", "b", "c"], ["q1", "q2"])
    rows, lengths = cache.frames.take(np.array([2, 0]))
    assert rows.tolist() == [[3] * 3] * 3 + [[1] * 3]
    assert lengths.tolist() == [3, 1]
    assert cache.teacher_frames.take(np.array([1]))[0].tolist() == [[20] * 5] * 4
    assert cache.teacher_queries.take(np.array([0, 1]))[0].tolist() == [[1] * 5, [2] * 5]
    assert (cache.pair_video_P.tolist(), cache.pair_query_P.tolist()) == ([0, 0, 2], [0, 1, 1])
    assert cache.captioned_videos().tolist() == [0, 2]
    queries, counts = cache.queries_of(np.array([2, 1, 0]))
    assert (queries.tolist(), counts.tolist()) == ([1, 0, 1], [1, 0, 2])


def test_batches_do_not_depend_on_the_order_of_shards(tmp_path):
    _write(tmp_path / "one")
    _write(tmp_path / "two", VIDEOS[::-1], QUERIES[::-1])
    one, two = read_cache(tmp_path / "one"), read_cache(tmp_path / "two")
    videos = np.arange(3)
    assert (one.frames.take(videos)[0] == two.frames.take(videos)[0]).all()
    assert (one.pair_video_P == two.pair_video_P).all()
    assert (one.pair_query_P == two.pair_query_P).all()


def test_values_are_mapped_not_read(tmp_path):
    _write(tmp_path / "cache")
    assert isinstance(read_cache(tmp_path / "cache").frames.values_nD, np.memmap)


@pytest.mark.parametrize(
    ("videos", "queries", "message"),
    [
        ([VideoRows("a", np.full((1, 3), np.nan), np.ones((1, 5)))], QUERIES, "frames of 'a' are not finite"),
        ([VideoRows("a", np.full((1, 3), 1e6), np.ones((1, 5)))], QUERIES, "frames of 'a' are not finite in float16"),
        ([*VIDEOS, VideoRows("d", np.ones((1, 4)), np.ones((1, 5)))], QUERIES, "frames of 'd' have 4 .* others have 3"),
        ([VideoRows("a", np.ones((0, 3)), np.ones((1, 5)))], QUERIES, "'a' has no frames"),
        (VIDEOS, [QueryRows("q", ["nobody"], np.ones((1, 4)), np.ones(5))], "query 'q' names 'nobody'"),
        ([*VIDEOS, VIDEOS[0]], QUERIES, r"occur twice: \['b'\]"),
        ([], [], "0 videos and 0 queries"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_bad_features_are_named_before_training(tmp_path, videos, queries, message):
    with pytest.raises(ValueError, match=message):
        _write(tmp_path / "cache", videos, queries)


def _open_and_log(folder: Path, log: Path) -> None:
    def fill(unfinished: Path) -> None:
        with open(log, "a") as file:
            file.write("filled\n")
        time.sleep(0.3)
        _write(unfinished)

    assert open_cache(folder, fill).video_ids == ["a", "b", "c"]


def test_one_of_several_processes_fills_the_cache(tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "caches" / "cache", tmp_path / "log")
    processes = [context.Process(target=_open_and_log, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "filled\n"


def _die_while_filling(folder: Path) -> None:
    def fill(unfinished: Path) -> None:
        (unfinished / "frames.f16").write_bytes(b"half")
        os._exit(9)

    open_cache(folder, fill)


def test_what_a_killed_process_left_is_thrown_away(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_die_while_filling, args=(tmp_path / "cache",))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert not (tmp_path / "cache").exists()
    assert open_cache(tmp_path / "cache", _write).video_ids == ["a", "b", "c"]


@pytest.mark.parametrize("lost", ["frames.f16", "ids.json", "index.npz"])
def test_a_cache_that_has_lost_a_file_is_filled_again(tmp_path, lost):
    open_cache(tmp_path / "cache", _write)
    (tmp_path / "cache" / lost).unlink()
    assert open_cache(tmp_path / "cache", _write).video_ids == ["a", "b", "c"]
    assert (tmp_path / "cache" / lost).exists()

"""The decoding and encoding workers of ingest without Ray: packs across the borders of videos, failures as rows."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from support.rendering import read_number, render
from support.small_clip import write_small_clip

from prvr_ray.features.decode_worker import DecodePlan, DecodeVideos
from prvr_ray.features.encode_worker import EncodePacks, EncodePlan
from prvr_ray.features.pending import WORK, classes_to_retry
from prvr_ray.schema import unpack_times, unpack_vectors
from prvr_ray.storage import LocalStore
from prvr_ray.video.container import Limits
from prvr_ray.video.decoder_process import VideoDecoder
from prvr_ray.video.errors import VideoError
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import Segment

SPECS = (FrameSpec((32, 32), "squash", "bilinear"), FrameSpec((36, 48), "squash"))


def decode_plan(
    kind: type[DecodePlan] = DecodePlan, pack_frames: int = 8, segment_frames: int = 4, min_share: float = 0.0
) -> DecodePlan:
    return kind(Sampling(1.0, False, segment_frames), SPECS, Limits(), 60.0, 30.0, 2**31, pack_frames, False, min_share)


def work(*paths: object, **changed: object) -> pa.Table:
    """Rows of work for files; no path is a missing one."""
    rows = []
    for path in paths:
        row = {"video_id": os.path.basename(path), "uri": str(path), "size": 1, "etag": "e", "added_at": 1.0}
        rows.append({**row, "missing": None, "skip": [], **changed})
    return pa.Table.from_pylist(rows, WORK)


def rows_of(pack: pa.Table) -> list[dict]:
    return pa.ipc.open_stream(pack["segments"][0].as_buffer()).read_all().to_pylist()


def frames_of(pack: pa.Table, spec: int) -> np.ndarray:
    return np.frombuffer(pack["frames"][0][spec].as_buffer(), np.uint8).reshape(-1, 3, *SPECS[spec].image_size)


@pytest.fixture
def videos(tmp_path):
    """Five, six and seven seconds; the numbers of the frames shown at the seconds are 0, 10, 20 ..."""
    return [render(tmp_path / f"{seconds}.mp4", 10 * seconds, fps=10) for seconds in (5, 6, 7)]


@dataclass(frozen=True)
class CountingPlan(DecodePlan):
    def load(self) -> VideoDecoder:
        return CountingDecoder()


class CountingDecoder(VideoDecoder):
    """Counts the files that it is given."""

    calls = 0

    def segments(self, *args: object, **options: object) -> Iterator[Segment]:
        CountingDecoder.calls += 1
        return super().segments(*args, **options)


def test_packs_run_across_videos_and_one_decode_serves_every_encoder(videos, monkeypatch):
    monkeypatch.setattr(CountingDecoder, "calls", 0)
    packs = list(DecodeVideos(decode_plan(CountingPlan))(work(*videos)))
    assert CountingDecoder.calls == 3
    assert [[(row["video_id"], row["segment"], row["num_frames"]) for row in rows_of(pack)] for pack in packs] == [
        [("5.mp4", 0, 4), ("5.mp4", 1, 1), ("6.mp4", 0, 4)],
        [("6.mp4", 1, 2), ("7.mp4", 0, 4), ("7.mp4", 1, 3)],
    ]
    numbers = [[read_number(frame) for frame in frames_of(pack, 1)] for pack in packs]
    assert numbers == [[0, 10, 20, 30, 40, 0, 10, 20, 30], [40, 50, 0, 10, 20, 30, 40, 50, 60]]
    assert [len(frames_of(pack, 0)) for pack in packs] == [9, 9]


def test_forward_passes_run_across_videos_and_every_row_gets_its_own_vectors(tmp_path, videos):
    name, _ = write_small_clip(tmp_path / "clip")
    (pack,) = DecodeVideos(decode_plan(pack_frames=100))(work(*videos))
    encoding = EncodePacks(EncodePlan((name,), (0,), 4, 1, 0))
    (encoder,) = encoding._encoders
    sizes, encode = [], encoder._frame_vectors

    def counted(frames_F3HW):
        sizes.append(len(frames_F3HW))
        return encode(frames_F3HW)

    encoder._frame_vectors = counted
    (rows,) = encoding(pack)
    assert sizes == [4, 4, 4, 4, 2]
    expected = encoder.encode_frames(frames_of(pack, 0))
    start = 0
    for row in rows.to_pylist():
        end = start + row["num_frames"]
        assert unpack_vectors(row["teacher"], 24) == pytest.approx(expected[start:end], abs=2e-3)
        assert len(unpack_times(row["timestamps_s"])) == row["num_frames"]
        start = end
    assert start == len(expected)


def test_vectors_that_float16_cannot_hold_are_a_failure_of_their_video_alone(tmp_path, videos):
    name, _ = write_small_clip(tmp_path / "clip")
    (pack,) = DecodeVideos(decode_plan(pack_frames=100))(work(*videos))
    encoding = EncodePacks(EncodePlan((name,), (0,), 64, 1, 0))
    (encoder,) = encoding._encoders
    vectors = np.ones((18, 24), np.float32)
    vectors[7] = 1e6  # a frame of the second video's first segment
    encoder.encode_frames = lambda frames: vectors
    (rows,) = encoding(pack)
    found = [(row["video_id"], row["segment"], row["error_class"], row["num_frames"]) for row in rows.to_pylist()]
    assert [row for row in found if row[2]] == [("6.mp4", 0, "encode", 0)]
    assert sum(row[3] for row in found) == 18 - 4


def test_a_row_says_how_much_of_a_cut_file_there_was(videos):
    data = render(videos[2].with_suffix(".mkv"), 300, fps=10).read_bytes()
    videos[2].with_suffix(".mkv").write_bytes(data[: len(data) // 2])
    packs = DecodeVideos(decode_plan(segment_frames=100))(work(videos[0], videos[2].with_suffix(".mkv")))
    whole, half = (row for pack in packs for row in rows_of(pack))
    assert (whole["warnings"], whole["decoded_share"]) == ([], 1.0)
    assert half["warnings"] == ["truncated"]
    assert half["decoded_share"] == pytest.approx(half["num_frames"] / 30, abs=0.1)
    assert 3 <= half["num_frames"] < 28


@pytest.mark.parametrize(("min_share", "is_failure"), [(0.2, False), (0.9, True)])
def test_a_video_of_which_too_little_is_there_is_a_failure_on_request(tmp_path, min_share, is_failure):
    whole = render(tmp_path / "whole.mkv", 300, fps=10)
    cut = whole.with_name("cut.mkv")
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    packs = list(DecodeVideos(decode_plan(min_share=min_share))(work(whole, cut)))
    rows = [row for pack in packs for row in rows_of(pack)]
    assert {row["video_id"] for row in rows if row["decoded_share"] == 1} == {"whole.mkv"}
    found = [(row["video_id"], row["segment"], row["error_class"]) for row in rows if row["error_class"]]
    assert found == ([("cut.mkv", 0, "partial")] if is_failure else [])
    assert classes_to_retry("partial") == ("partial",)


def test_a_row_s_times_are_those_that_a_player_shows(tmp_path):
    """The pictures start 20 s behind the sound; 6 s of them."""
    late = render(tmp_path / "late.mkv", 60, times=[20_000 + 100 * n for n in range(60)], b_frames=0, sound_s=(0, 30))
    (pack,) = DecodeVideos(decode_plan(segment_frames=100, pack_frames=100))(work(late))
    (row,) = rows_of(pack)
    assert unpack_times(row["timestamps_s"]).tolist() == pytest.approx([20, 21, 22, 23, 24, 25])
    assert row["start_s"] == 0
    assert row["duration_s"] == pytest.approx(26, abs=0.05)


def failures(packs: list[pa.Table]) -> list[tuple]:
    """video_id, segment, error_class and error of the failure rows."""
    names = ("video_id", "segment", "error_class", "error")
    rows = [row for pack in packs for row in rows_of(pack)]
    assert all(row["is_last"] and not row["num_frames"] for row in rows if row["error_class"])
    return [tuple(row[name] for name in names) for row in rows if row["error_class"]]


def test_a_file_that_is_not_there_is_a_download_failure(tmp_path, videos):
    gone = work(tmp_path / "gone.mp4", missing="there is no such file")
    packs = list(DecodeVideos(decode_plan())(pa.concat_tables([gone, work(videos[0])])))
    assert failures(packs) == [("gone.mp4", 0, "download", "there is no such file")]
    assert len(rows_of(packs[0])) == 3


def test_a_file_that_this_node_cannot_read_is_a_download_failure(tmp_path):
    missing = tmp_path / "not-mounted" / "5.mp4"
    packs = list(DecodeVideos(decode_plan())(work(missing)))
    assert failures(packs) == [("5.mp4", 0, "download", f"[Errno 2] No such file or directory: '{missing}'")]


def test_no_room_for_a_download_is_a_download_failure(videos, monkeypatch):
    def full(store, key):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LocalStore, "local_file", full)
    assert failures(list(DecodeVideos(decode_plan())(work(videos[0])))) == [
        ("5.mp4", 0, "download", "[Errno 28] No space left on device")
    ]


@dataclass(frozen=True)
class FailingPlan(DecodePlan):
    def load(self) -> VideoDecoder:
        return FailingDecoder()


class FailingDecoder(VideoDecoder):
    """Fails after the first segment that it was asked for."""

    def segments(self, *args: object, **options: object) -> Iterator[Segment]:
        yield next(super().segments(*args, **options))
        raise VideoError("timeout", "it took too long")


@pytest.mark.parametrize(("skip", "failed"), [([], 1), ([0], 2), ([1], 2), ([0, 2], 3)])
def test_a_failure_is_the_first_segment_that_does_not_stand(videos, skip, failed):
    packs = list(DecodeVideos(decode_plan(FailingPlan, segment_frames=2))(work(videos[2], skip=skip)))
    assert failures(packs) == [("7.mp4", failed, "timeout", "it took too long")]
    good = [row["segment"] for pack in packs for row in rows_of(pack) if not row["error_class"]]
    assert good == [min({0, 1, 2, 3} - set(skip))]

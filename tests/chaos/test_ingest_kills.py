"""Ingest is killed, and readers see every segment exactly once, as if nothing had happened."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray.cloudpickle
from support.interrupted import (
    check_features,
    check_nothing_again,
    committed,
    exit_code,
    expected_features,
    ingesting,
    render_videos,
    settings_for,
    shard_names,
    summary_of,
    wait_until,
)
from support.small_clip import write_small_clip

from prvr_ray import schema
from prvr_ray.collection import ShardFolder, open_collection
from prvr_ray.encoders import describe_encoder
from prvr_ray.features.decode_worker import DecodePlan
from prvr_ray.features.encode_worker import EncodePlan
from prvr_ray.features.pending import compare_videos, find_pending_videos, read_states
from prvr_ray.features.sources import list_sources
from prvr_ray.stages.ingest_pipeline import plan_pipeline
from prvr_ray.storage import LocalStore
from prvr_ray.video.decoder_process import VideoDecoder
from prvr_ray.video.segments import Segment

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test module


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_small_clip(tmp_path_factory.mktemp("clip"))[0]


@dataclass(frozen=True)
class Doom:
    """Kills the process that calls it: once each for the first few calls, whichever process they come from."""

    folder: Path
    calls: tuple[int, ...]

    def strike(self) -> None:
        for call in range(max(self.calls) + 1):
            try:
                (self.folder / str(call)).touch(exist_ok=False)
            except FileExistsError:
                continue
            if call in self.calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return


def doom(folder: Path, *calls: int) -> Doom:
    folder.mkdir()
    return Doom(folder, calls)


class DoomedDecoder(VideoDecoder):
    """The worker around it dies between two segments of a video."""

    def __init__(self, doom: Doom):
        super().__init__()
        self._doom = doom

    def segments(self, *args: object, **options: object) -> Iterator[Segment]:
        for segment in super().segments(*args, **options):
            self._doom.strike()
            yield segment


@dataclass(frozen=True)
class DoomedDecodePlan(DecodePlan):
    doom: Doom

    def load(self) -> VideoDecoder:
        return DoomedDecoder(self.doom)


@dataclass
class DoomedEncoder:
    """The worker around it dies with a pack in its hands."""

    encoder: object
    doom: Doom

    @property
    def spec(self):
        return self.encoder.spec

    def encode_frames(self, frames_F3HW: np.ndarray) -> np.ndarray:
        self.doom.strike()
        return self.encoder.encode_frames(frames_F3HW)


@dataclass(frozen=True)
class DoomedEncodePlan(EncodePlan):
    doom: Doom

    def load(self) -> list[DoomedEncoder]:
        return [DoomedEncoder(encoder, self.doom) for encoder in super().load()]


@dataclass(frozen=True)
class DoomedStore(LocalStore):
    """The worker dies between put and acknowledgement: the shard stands, but nobody hears of it."""

    doom: Doom

    def put(self, key: str, data: pa.Buffer) -> None:
        super().put(key, data)
        self.doom.strike()


@pytest.mark.slow
def test_killed_workers_of_every_kind_leave_each_segment_once(tmp_path, local_ray, encoder):
    videos, root = render_videos(tmp_path / "videos", 6), str(tmp_path / "root")
    expected = expected_features(videos, encoder)
    settings = settings_for(encoder)
    collection = open_collection(root)
    current, changed = compare_videos(collection, list_sources(str(videos), ["mp4"])[0], settings.split_shares, 1.0)
    collection.video_shards.append(changed)
    plain = plan_pipeline(settings, [describe_encoder(encoder)])
    pipeline = replace(
        plain,
        decode=DoomedDecodePlan(**vars(plain.decode), doom=doom(tmp_path / "decoders", 3, 9)),
        encode=DoomedEncodePlan(**vars(plain.encode), doom=doom(tmp_path / "encoders", 2)),
    )
    features = collection.features()
    store = DoomedStore(features.video_shards.store.uri, doom(tmp_path / "putters", 1, 4))
    (tmp_path / "root/features/default").mkdir(parents=True)
    (tmp_path / "root/features/default/spec.json").write_text(
        '{"format_version": 1, "shared": true, "teacher": {"dim": 24}, "student": {"dim": 24}}'
    )
    work = find_pending_videos(current, read_states(features, current), retry=())

    pipeline.ingest_videos(work, ShardFolder(store, schema.FEATURE_VIDEOS), "shard")

    for name, call in (("decoders", 9), ("encoders", 2), ("putters", 4)):
        assert (tmp_path / name / str(call)).exists(), f"{name} were never killed"
    check_features(collection, expected)


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(tmp_path, encoder):
    num_kills = 20
    rng = np.random.default_rng(num_kills)
    num_videos = 10 + 8 * num_kills
    videos = render_videos(tmp_path / "videos", num_videos)
    root, log = str(tmp_path / "root"), tmp_path / "log"
    settings = settings_for(encoder, num_decoders=1)  # every start costs each worker's imports
    some = settings.model_copy(update={"limit": 8})  # workers put what they have for a while after their driver's death
    kills = 0
    for _ in range(num_kills):
        before, shards_before = committed(root), set(shard_names(root))
        goal = len(shards_before) + int(rng.integers(1, 8))
        with ingesting(root, str(videos), some, log) as process:
            if wait_until(lambda goal=goal: len(shard_names(root)) >= goal, process):
                time.sleep(rng.uniform(0.0, 0.05))
                kills += process.is_alive()
        check_nothing_again(root, before, shards_before)
    before, shards_before = committed(root), set(shard_names(root))
    with ingesting(root, str(videos), settings, log) as process:
        assert exit_code(process) == 0
    check_nothing_again(root, before, shards_before)

    assert kills == num_kills
    assert summary_of(log)["videos"]["ingested"] == num_videos
    check_features(open_collection(root), expected_features(videos, encoder))


@pytest.mark.slow
def test_two_runs_at_once_leave_each_segment_once(tmp_path, encoder):
    videos, root = render_videos(tmp_path / "videos", 12), str(tmp_path / "root")
    logs = [tmp_path / "first", tmp_path / "second"]
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(ingesting(root, str(videos), settings_for(encoder), log)) for log in logs]
        assert [exit_code(run) for run in runs] == [0, 0]
    check_features(open_collection(root), expected_features(videos, encoder))
    assert max(summary_of(log)["videos"]["ingested"] for log in logs) == 12
    assert {summary_of(log)["videos"]["failed"] for log in logs} == {0}

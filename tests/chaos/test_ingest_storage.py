"""Storage in trouble: an S3 server that is busy or cuts connections costs time, a full disk another run."""

import contextlib
import errno
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import ray.cloudpickle
from support.faulty_proxy import Faults, faulty_proxy
from support.interrupted import (
    FPS,
    SEGMENT_FRAMES,
    check_features,
    check_nothing_again,
    committed,
    count_decoded,
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

from prvr_ray import cli
from prvr_ray.collection import collection as collection_module
from prvr_ray.collection import open_collection
from prvr_ray.collection.shard_writer import PutShard, raise_put_errors
from prvr_ray.features.decode_worker import DecodePlan, DecodeVideos
from prvr_ray.features.encode_worker import EncodePacks, EncodePlan
from prvr_ray.features.pending import compare_videos, find_pending_videos, read_states
from prvr_ray.features.sources import list_sources
from prvr_ray.stages import ingest as stage
from prvr_ray.storage import LocalStore, open_store, s3
from prvr_ray.video.container import Limits
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test module


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_small_clip(tmp_path_factory.mktemp("clip"))[0]


@pytest.mark.slow
def test_a_busy_server_that_cuts_connections_costs_nothing_but_time(
    tmp_path, s3_endpoint, s3_root, encoder, monkeypatch
):
    local, source = render_videos(tmp_path / "videos", 8), s3_root.replace("collection", "videos")
    upload(local, source)
    faults = Faults(busy=0.15, cut_before=0.1, cut_after=0.15, deck=20)  # there are few requests
    with faulty_proxy(s3_endpoint, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_clients()
        ingest_here(source, s3_root, encoder)
        assert min(faults.counts[kind] for kind in ("busy", "cut_before", "cut_after")) > 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    forget_clients()
    check_features(open_collection(s3_root), expected_features(local, encoder))


@dataclass(frozen=True)
class SmallDisk(LocalStore):
    """Has room for as many shards of video features as there are files in a folder."""

    room: Path

    def child(self, path: str) -> "SmallDisk":
        return SmallDisk(super().child(path).uri, self.room)

    def put(self, key: str, data: bytes | pa.Buffer) -> None:
        if self.uri.endswith("features/default/videos"):
            self._take_room(key)
        super().put(key, data)

    def _take_room(self, key: str) -> None:
        for place in self.room.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another worker's now
                place.unlink()
                return
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{self.uri}/{key}")


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_the_next_run_decodes_what_is_missing(
    tmp_path, local_ray, encoder, monkeypatch, capfd
):
    videos, root, room = render_videos(tmp_path / "videos", 6), tmp_path / "root", tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(collection_module, "open_store", lambda uri: SmallDisk(str(uri), room))
    command = [
        "ingest", "--videos", str(videos), "--root", str(root), "--encoder", encoder, "--fps", str(FPS),
        "--ingest.segment_frames", str(SEGMENT_FRAMES), "--ingest.shard_bytes", "1", "--ingest.num_decoders", "2",
    ]  # fmt: skip
    add_room(room, 5)

    assert cli.main(command) == 2
    # core_worker.cc: Ray says once a process that it starts an actor.
    said = [line for line in capfd.readouterr().err.splitlines() if "core_worker.cc" not in line]
    assert len(said) == 1, said
    assert f"No space left on device: '{root}/features/default/videos/shard-" in said[0]

    before = committed(str(root))
    assert len(before) == 5
    add_room(room, 100)
    decoded = count_decoded(tmp_path / "decoded", monkeypatch)
    assert cli.main(command) == 0
    everything = committed(str(root))
    assert decoded() == dict.fromkeys(everything - before, 1)
    check_features(open_collection(str(root)), expected_features(videos, encoder))


def add_room(room: Path, num_shards: int) -> None:
    for number in range(num_shards):
        (room / str(number)).touch()


SECRET = "s3cret-0123456789"
KEYS = [
    "x" * 1000 + ".mp4",
    "-rf.mp4",
    'it\'s "quoted"; $HOME.mp4',
    "ümläut 日本 🎬.mp4",
    "a/../b.mp4",
    "100%25?c=d#e.mp4",
]


@pytest.mark.slow
def test_an_interrupted_ingest_on_s3_resumes_to_the_same_result_and_keeps_its_secret(
    tmp_path, s3_endpoint, s3_root, encoder, monkeypatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    forget_clients()
    local, source = render_videos(tmp_path / "videos", 6), s3_root.replace("collection", "videos")
    expected = expected_features(local, encoder)
    upload(local, source)
    for key in KEYS:
        open_store(source).put(key, (local / "video 000.mp4").read_bytes())
    expected |= dict.fromkeys(KEYS, expected["video 000.mp4"])
    open_store(source).put("broken.mp4", b"not a video")
    settings, log = settings_for(encoder, max_failure_share=0.2), tmp_path / "log"

    # Under /tmp, for the paths of Ray's sockets must be short.
    with tempfile.TemporaryDirectory(prefix="pr-", ignore_cleanup_errors=True) as folder:
        environment = {"RAY_TMPDIR": folder, "PRVR_QUIET": ""}
        with ingesting(s3_root, source, settings, log, environment) as process:
            assert wait_until(lambda: len(shard_names(s3_root)) >= 4, process)
        interrupted, shards_before = committed(s3_root), set(shard_names(s3_root))
        with ingesting(s3_root, source, settings, log, environment) as process:
            assert exit_code(process) == 0, log.read_text()
        secrets = [path for path in Path(folder).rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]

    assert 4 <= len(interrupted) < len(committed(s3_root))
    check_nothing_again(s3_root, interrupted, shards_before)
    check_features(open_collection(s3_root), expected)
    videos = summary_of(log)["videos"]
    assert videos == {"total": 13, "ingested": 12, "failed": 1, "by_error_class": {"decode": 1}}
    store = open_store(s3_root)
    assert secrets == []
    assert SECRET not in log.read_text()
    assert not [item.key for item in store.list() if SECRET.encode() in store.get(item.key)]


def ingest_here(source: str, root: str, encoder: str) -> None:
    """The workers of ingest one after the other in this process, one shard a pack."""
    collection = open_collection(root)
    stage.declare_spec(collection.features().store, {"shared": True, "teacher": {"dim": 24}, "student": {"dim": 24}})
    current, changed = compare_videos(collection, list_sources(source, ["mp4"])[0], {"train": 1.0}, 1.0)
    collection.video_shards.append(changed)
    work = find_pending_videos(current, read_states(collection.features(), current), retry=())
    spec = FrameSpec((32, 32), "squash", "bilinear")
    decoding = DecodeVideos(
        DecodePlan(Sampling(FPS, False, SEGMENT_FRAMES), (spec,), Limits(), 60.0, 30.0, 2**31, 4, False, 0.0)
    )
    encoding = EncodePacks(EncodePlan((encoder,), (0,), 4, 1, 0))
    for packs in decoding(work):
        for rows in encoding(packs):
            raise_put_errors(PutShard(collection.features().video_shards, "shard-1")(rows))


def upload(folder: Path, uri: str) -> None:
    for path in folder.glob("*.mp4"):
        open_store(uri).put(path.name, path.read_bytes())


def forget_clients() -> None:
    s3._s3_client.cache_clear()

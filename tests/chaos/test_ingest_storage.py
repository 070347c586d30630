"""An S3 server that is busy or cuts connections costs ingest nothing but time."""

from pathlib import Path

import pytest
from faulty_proxy import Faults, faulty_proxy
from interrupted import (
    FPS,
    SEGMENT_FRAMES,
    check_features,
    expected_features,
    render_videos,
)
from small_clip import write_small_clip

from prvr_ray import storage
from prvr_ray.collection import open_collection
from prvr_ray.corpus.container import Limits
from prvr_ray.corpus.frames import FrameSpec
from prvr_ray.corpus.packets import Sampling
from prvr_ray.stages import ingest as stage
from prvr_ray.stages.committing import put_shard
from prvr_ray.stages.decoding import DecodePlan, DecodeVideos
from prvr_ray.stages.encoding import EncodePacks, EncodePlan
from prvr_ray.stages.sources import list_sources
from prvr_ray.stages.wanted import current_videos, states, wanted_videos
from prvr_ray.storage import open_store


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_small_clip(tmp_path_factory.mktemp("clip"))[0]


def test_a_busy_server_that_cuts_connections_costs_nothing_but_time(
    tmp_path, s3_endpoint, s3_root, encoder, monkeypatch
):
    local, source = render_videos(tmp_path / "videos", 8), s3_root.replace("collection", "videos")
    upload(local, source)
    faults = Faults(busy=0.15, cut_before=0.1, cut_after=0.15)  # there are few requests
    with faulty_proxy(s3_endpoint, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_clients()
        ingest_here(source, s3_root, encoder)
        assert min(faults.counts[kind] for kind in ("busy", "cut_before", "cut_after")) > 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    forget_clients()
    check_features(open_collection(s3_root), expected_features(local, encoder))


def ingest_here(source: str, root: str, encoder: str) -> None:
    """The workers of ingest one after the other in this process, one shard a pack."""
    collection = open_collection(root)
    stage.declare_spec(collection.features().store, {"shared": True, "teacher": {"dim": 24}, "student": {"dim": 24}})
    current, changed = current_videos(collection, list_sources(source, ["mp4"])[0], {"train": 1.0}, 1.0)
    collection.video_shards.append(changed)
    work = wanted_videos(current, states(collection.features(), current), retry=())
    spec = FrameSpec((32, 32), "squash", "bilinear")
    decoding = DecodeVideos(DecodePlan(Sampling(FPS, False, SEGMENT_FRAMES), (spec,), Limits(), 60.0, 30.0, 2**31, 4))
    encoding = EncodePacks(EncodePlan((encoder,), (0,), 4, 1))
    for packs in decoding(work):
        for rows in encoding(packs):
            put_shard(rows, collection.features().video_shards, "shard-1")


def upload(folder: Path, uri: str) -> None:
    for path in folder.glob("*.mp4"):
        open_store(uri).put(path.name, path.read_bytes())


def forget_clients() -> None:
    storage._s3_client.cache_clear()
    storage._s3_filesystem.cache_clear()

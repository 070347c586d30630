"""A node dies in the middle of a stage: the stage ends with the right result."""

from collections.abc import Iterator
from functools import partial

import pytest
import released_layout
from several_nodes import Nodes, running, several_nodes
from worlds import NUM_FRAMES, random_encoder, render_videos

from prvr_ray.collection import open_collection
from prvr_ray.runs import open_run
from prvr_ray.stages.imports import import_collection

DECODERS, ENCODERS = "MapWorker(MapBatches(DecodeVideos))", "MapWorker(MapBatches(EncodePacks))"
NUM_VIDEOS = 24
STUDENT = ["--student.hidden_dim", "16", "--student.max_frames", "12", "--train.videos_per_batch", "6"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with several_nodes() as nodes:
        yield nodes


@pytest.fixture
def nodes(cluster: Nodes) -> Iterator[Nodes]:
    yield cluster
    cluster.clear()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    """A collection with imported features."""
    folder = tmp_path_factory.mktemp("released")
    released_layout.render(folder, {"train": 40, "val": 12, "test": 30})
    import_collection("released", str(folder), f"{folder}/root")
    return f"{folder}/root"


def test_ingest_survives_the_death_of_a_decoding_and_of_an_encoding_node(nodes, tmp_path):
    places = {nodes.add(1, labels={"pool": "decode"}).node_id: "decode" for _ in range(2)}
    places |= {nodes.add(1, num_gpus=1, labels={"pool": "gpu"}).node_id: "gpu" for _ in range(2)}
    root, videos = tmp_path / "root", render_videos(tmp_path / "videos", NUM_VIDEOS)
    command = [
        "ingest", "--videos", str(videos), "--root", str(root), "--address", nodes.address,
        "--encoder", random_encoder(tmp_path / "encoder"), "--ingest.batch_frames", "3",
        "--ingest.num_decoders", "2", "--ingest.decoder_cpus", "0.5", "--ingest.decoder_labels", '{"pool": "decode"}',
        "--ingest.max_encoders", "2", "--ingest.encoder_cpus", "0.5", "--ingest.encoder_gpus", "1",
        "--ingest.encoder_labels", '{"pool": "gpu"}', "--ingest.shard_bytes", "50000",
    ]  # fmt: skip
    with running(tmp_path, *command) as ingest:
        for name in (DECODERS, ENCODERS):
            nodes.kill(ingest.wait_until(partial(nodes.with_actor, name)))
        summary = ingest.result()

    assert summary["videos"] == {"total": NUM_VIDEOS, "ingested": NUM_VIDEOS, "failed": 0, "by_error_class": {}}
    features = open_collection(str(root)).features()
    found = {video.video_id: len(video.teacher) for video in features.read_videos(features.complete())}
    assert found == {f"{number:02d}.mp4": NUM_FRAMES for number in range(NUM_VIDEOS)}
    assert {places[place.node_id] for place in nodes.actors() if place.name == DECODERS} == {"decode"}
    assert {places[place.node_id] for place in nodes.actors() if place.name == ENCODERS} == {"gpu"}


@pytest.mark.slow
def test_train_ends_as_without_the_death_of_a_worker_s_node(nodes, root, tmp_path):
    [nodes.add() for _ in range(2)]
    options = ["--train.num_workers", "2", "--train.worker_cpus", "1", "--train.num_epochs", "6"]
    common = ["train", "--root", root, "--address", nodes.address, "--train.checkpoint_steps", "1", *STUDENT, *options]
    with running(tmp_path, *common, "--run", "calm") as train:
        train.result()
    folder = open_run(root, "stormy")
    with running(tmp_path, *common, "--run", "stormy") as train:
        train.wait_until(folder.metrics)
        nodes.kill(nodes.busy())
        nodes.add()
        train.result()
    assert last_state(root, "stormy") == last_state(root, "calm")
    assert [epoch["epoch"] for epoch in folder.metrics()] == list(range(6))


def last_state(root: str, run: str) -> bytes:
    folder = open_run(root, run)
    return folder.store.get(folder.latest_checkpoint())

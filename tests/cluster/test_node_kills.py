"""A node dies in the middle of a stage: the stage ends with the right result, that of an undisturbed run."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from support import released_layout
from support.cluster_worlds import NUM_FRAMES, random_encoder, render_videos, vectors_of
from support.served import add_queries, add_run, add_videos
from support.several_nodes import Nodes, running, several_nodes

from prvr_ray.collection import open_collection
from prvr_ray.features.importing import import_collection
from prvr_ray.index.index import IndexFolder
from prvr_ray.runs.run import open_run
from prvr_ray.storage import open_store
from prvr_ray.tuning.records import TrialFolder

DECODERS, ENCODERS = "MapWorker(MapBatches(DecodeVideos))", "MapWorker(MapBatches(EncodePacks))"
INDEXERS = "MapWorker(MapBatches(_IndexVideos))"
NUM_VIDEOS = 24
STUDENT = ["--student.hidden_dim", "16", "--student.max_frames", "12", "--train.videos_per_batch", "6"]
ROW = [("video_id", "ascending"), ("window", "ascending")]
SERVED_VIDEOS = 768  # some 40 tasks of `prvr index`
# Many windows, each a pass of its own, and few of them a shard: work that can be interrupted, in many units of scoring.
INDEX_OPTIONS = [
    "--index.windowing", "windows", "--index.window_frames", "4", "--index.overlap_frames", "2",
    "--index.pass_frames", "1", "--index.shard_bytes", "4096", "--index.num_indexers", "2",
]  # fmt: skip
SCORE_OPTIONS = [
    "--score.unit_bytes", "1", "--score.top_k", "1", "--score.num_moments", "0", "--score.num_scorers", "2",
]  # fmt: skip


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


@pytest.mark.slow
def test_ingest_survives_the_death_of_a_decoding_and_of_an_encoding_node(nodes, tmp_path):
    places = {nodes.add(1, labels={"pool": "decode"}).node_id: "decode" for _ in range(2)}
    places |= {nodes.add(1, num_gpus=1, labels={"pool": "gpu"}).node_id: "gpu" for _ in range(2)}
    root, videos = tmp_path / "root", render_videos(tmp_path / "videos", NUM_VIDEOS)
    encoder = random_encoder(tmp_path / "encoder")
    command = [
        "ingest", "--videos", str(videos), "--root", str(root), "--address", nodes.address,
        "--encoder", encoder, "--ingest.batch_frames", "3",
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
    found = {video.video_id: video.teacher for video in features.read_videos(features.complete())}
    assert set(found) == {f"{number:02d}.mp4" for number in range(NUM_VIDEOS)}
    expected_FD = vectors_of(videos / "00.mp4", encoder)  # all videos are copies of it
    assert len(expected_FD) == NUM_FRAMES
    for vectors_FD in found.values():
        np.testing.assert_allclose(vectors_FD, expected_FD, rtol=2e-3, atol=2e-3 * np.abs(expected_FD).max())
    assert {places[place.node_id] for place in nodes.actors() if place.name == DECODERS} == {"decode"}
    assert {places[place.node_id] for place in nodes.actors() if place.name == ENCODERS} == {"gpu"}


@pytest.mark.slow
def test_ingest_leaves_room_for_the_encoder_on_one_gpu_machine(nodes, tmp_path):
    nodes.add(2, num_gpus=1)
    root, videos = tmp_path / "root", render_videos(tmp_path / "videos", 8)
    command = [
        "ingest", "--videos", str(videos), "--root", str(root), "--address", nodes.address,
        "--encoder", random_encoder(tmp_path / "encoder"), "--ingest.encoder_gpus", "1",
    ]  # fmt: skip
    with running(tmp_path, *command) as ingest:
        assert ingest.result(timeout_s=90)["videos"]["ingested"] == 8


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


@pytest.fixture(scope="module")
def served_root(tmp_path_factory) -> str:
    """A collection with features and a run: enough to index, score and evaluate."""
    root = str(tmp_path_factory.mktemp("served"))
    names = [f"v{number:04d}" for number in range(SERVED_VIDEOS)]
    add_videos(root, names)
    add_queries(root, {f"q{number:03d}": [names[number]] for number in range(20)})
    add_run(root)
    return root


@pytest.fixture(scope="module")
def calm_index(cluster, served_root, tmp_path_factory) -> str:
    """The name of an index that nothing disturbed."""
    cluster.add(2)
    with running(tmp_path_factory.mktemp("calm"), *index_command(cluster, served_root, "calm")) as index:
        index.result()
    cluster.clear()
    return "calm"


def index_command(nodes: Nodes, root: str, name: str) -> list[str]:
    return ["index", "--root", root, "--run", "run", "--index", name, "--address", nodes.address, *INDEX_OPTIONS]


@pytest.mark.slow
def test_index_ends_as_without_the_announced_death_of_a_node(nodes, calm_index, served_root, tmp_path):
    [nodes.add() for _ in range(2)]
    calm, folder = rows_of(served_root, calm_index), IndexFolder(open_collection(served_root), "stormy")
    with running(tmp_path, *index_command(nodes, served_root, "stormy")) as index:
        taken = index.wait_until(partial(nodes.with_actor, INDEXERS))
        nodes.announce_end(taken, 5)
        nodes.add()
        assert len(folder.windows()) < len(calm)
        nodes.kill(taken)
        assert index.process.poll() is None
        assert index.result()["videos"] == SERVED_VIDEOS
    assert rows_of(served_root, "stormy").equals(calm)


def rows_of(root: str, index: str) -> pa.Table:
    """The rows of an index that count, without the shards that they stand in."""
    folder = IndexFolder(open_collection(root), index)
    counting = folder.windows().select(["shard", "row"])
    places = dict.fromkeys(zip(*(column.to_pylist() for column in counting.columns), strict=True))
    rows = folder.shards.scan()
    found = zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True)
    return rows.filter([place in places for place in found]).drop_columns(["shard", "row"]).sort_by(ROW)


@pytest.mark.slow
def test_score_ends_as_without_the_death_of_a_node_that_nothing_replaces(nodes, calm_index, served_root, tmp_path):
    [nodes.add() for _ in range(2)]
    common = ["score", "--root", served_root, "--index", calm_index, "--queries", "test", "--address", nodes.address]
    with running(tmp_path, *common, *SCORE_OPTIONS, "--output", "calm") as score:
        calm = score.result()
    store = open_store(served_root).child("scores")
    with running(tmp_path, *common, *SCORE_OPTIONS, "--output", "stormy") as score:
        score.wait_until(lambda: len(store.list("stormy/partials/")) > 3)
        nodes.kill(nodes.with_actor("Scorer"))
        assert len(store.list("stormy/partials/")) < calm["units"]
        assert score.result()["units_scored"] == calm["units"]
    assert parts(store, "stormy") == parts(store, "calm") != []


def parts(store: Any, job: str) -> list[bytes]:
    return [store.get(item.key) for item in store.list(f"{job}/part-")]


@pytest.mark.slow
def test_evaluate_ends_as_without_the_death_of_its_node(nodes, served_root, tmp_path):
    nodes.add()
    command = ["evaluate", "--root", served_root, "--run", "run", "--split", "test", "--address", nodes.address]
    with running(tmp_path, *command) as evaluate:
        calm = evaluate.result()
    with running(tmp_path, *command) as evaluate:
        evaluate.wait_until(is_evaluating)
        nodes.kill(nodes.busy())
        nodes.add()
        stormy = evaluate.result()
    assert stormy | {"seconds": 0} == calm | {"seconds": 0}


def is_evaluating() -> bool:
    """Whether a worker is in the middle of it: Ray names a process after the task that it runs."""
    titles = (process.info["cmdline"] for process in psutil.process_iter(["cmdline"]))
    return any(title and title[0].startswith("ray::evaluate_split") for title in titles)


@pytest.mark.slow
def test_a_study_ends_as_without_the_death_of_a_trial_s_node(nodes, root, tmp_path):
    [nodes.add() for _ in range(2)]
    searched = ["--tune.sampler", "random", "--tune.scheduler", "none", "--tune.confirm_top", "0"]
    trained = ["--tune.num_trials", "3", "--train.num_epochs", "6", "--train.cache_folder", str(tmp_path)]
    common = ["tune", "--root", root, "--address", nodes.address, *STUDENT, *searched, *trained]
    with running(tmp_path, *common, "--study", "calm") as tune:
        tune.result()
    with running(tmp_path, *common, "--study", "stormy") as tune:
        store = open_store(root).child("tune/stormy/trials")
        tune.wait_until(lambda: [item for item in store.list() if "/metrics/" in item.key])
        nodes.kill(nodes.busy())
        nodes.add()
        assert tune.result()["states"] == {"finished": 3}
    assert curves(root, "stormy") == curves(root, "calm")


def curves(root: str, study: str) -> dict[str, tuple]:
    trials = TrialFolder(open_store(root).child(f"tune/{study}/trials")).ended()
    return {name: (trial.point, trial.curve) for name, trial in trials.items()}

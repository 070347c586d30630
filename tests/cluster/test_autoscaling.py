"""Autoscaling for real, with fake nodes of cluster/aws.yaml's types: from none to several and back to none."""

import time
from collections import Counter

import pytest
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus
from ray.util.state import list_tasks
from support.cluster_worlds import NUM_FRAMES, random_encoder, render_videos
from support.clusters import Head, running_head
from support.launched import shrunken_aws
from support.served import add_run, add_videos
from support.several_nodes import running

from prvr_ray.collection import open_collection

NUM_VIDEOS = 40


@pytest.fixture(scope="module")
def head():
    with running_head(num_cpus=0, autoscaling=shrunken_aws()) as running:
        yield running


def node_types(head: Head) -> dict[str, str]:
    """Node id -> type of the living worker nodes."""
    status = GetClusterStatusReply.FromString(GcsClient(head.address).get_cluster_status(timeout_s=10))
    nodes = status.cluster_resource_state.node_states
    return {
        n.node_id.hex(): n.ray_node_type_name for n in nodes if n.status != NodeStatus.DEAD and n.ray_node_type_name
    }


@pytest.mark.slow
def test_nodes_come_for_ingest_share_its_work_and_go(head, tmp_path):
    root, videos = tmp_path / "root", render_videos(tmp_path / "videos", NUM_VIDEOS)
    assert not node_types(head)
    seen: dict[str, str] = {}
    command = [
        "ingest", "--videos", str(videos), "--root", str(root), "--address", head.address,
        "--encoder", random_encoder(tmp_path / "encoder"), "--ingest.batch_frames", "3",
        "--ingest.num_decoders", "2", "--ingest.decoder_cpus", "2", "--ingest.decoder_labels", '{"pool": "decode"}',
        "--ingest.max_encoders", "2", "--ingest.encoder_cpus", "1", "--ingest.encoder_gpus", "1",
        "--ingest.encoder_labels", '{"ray.io/accelerator-type": "L4"}',
    ]  # fmt: skip
    with running(tmp_path, *command) as ingest:
        while ingest.process.poll() is None:
            seen |= node_types(head)
            time.sleep(0.2)
        summary = ingest.result()

    assert summary["videos"]["ingested"] == NUM_VIDEOS
    features = open_collection(str(root)).features()
    assert sum(len(video.teacher) for video in features.read_videos(features.complete())) == NUM_VIDEOS * NUM_FRAMES
    worked = nodes_of_tasks(head)
    assert len(worked["DecodeVideos"]) == 2
    assert len(worked["EncodePacks"]) == 2
    assert {seen[node] for node in worked["DecodeVideos"]} == {"decode"}
    assert {seen[node] for node in worked["EncodePacks"]} <= {"gpu-spot", "gpu-on-demand"}
    wait_until_no_nodes(head)


@pytest.mark.slow
def test_a_gpu_job_where_no_node_type_has_gpus_ends_within_a_minute_and_names_them(tmp_path):
    config = shrunken_aws()
    types = {name: node for name, node in config["available_node_types"].items() if "GPU" not in node["resources"]}
    add_videos(tmp_path, ["v0"])
    add_run(tmp_path)
    command = ["index", "--root", str(tmp_path), "--run", "run", "--index", "i", "--index.indexer_gpus", "1"]
    with running_head(num_cpus=0, autoscaling={**config, "available_node_types": types}) as head:
        begun = time.monotonic()
        with running(tmp_path, *command, "--address", head.address) as index:
            assert index.process.wait(timeout=70) == 2
        assert time.monotonic() - begun < 60
    (said,) = index.log.read_text().splitlines()
    assert said.startswith("prvr: the cluster cannot give 1 indexer(s) of CPU 1, GPU 1 each: no node has ")
    assert "1 GPU (at most 0)" in said
    assert "no node type of its autoscaler does" in said


def nodes_of_tasks(head: Head) -> dict[str, Counter]:
    """For every kind of worker the nodes that finished tasks of it, with their numbers."""
    tasks = list_tasks(address=head.dashboard, limit=10_000, filters=[("state", "=", "FINISHED")])
    return {
        name: Counter(task.node_id for task in tasks if task.name == f"MapWorker(MapBatches({name})).submit")
        for name in ("DecodeVideos", "EncodePacks")
    }


def wait_until_no_nodes(head: Head, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while nodes := node_types(head):
        assert time.monotonic() < deadline, f"still there: {nodes}"
        time.sleep(0.5)

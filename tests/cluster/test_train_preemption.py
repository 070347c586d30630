"""A cloud announces that it takes a node away: training keeps a checkpoint before, and goes on elsewhere."""

import subprocess
from pathlib import Path

import pytest
import released_layout
from clusters import BIN
from several_nodes import Nodes, running, several_nodes

from prvr_ray.runs import open_run
from prvr_ray.stages.imports import import_collection

NOTICE_S = 30


def announce_end(nodes: Nodes, node_id: str) -> None:
    """What an autoscaler does with a cloud's notice."""
    options = {
        "--address": nodes.address,
        "--node-id": node_id,
        "--reason": "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message": "spot",
        "--deadline-remaining-seconds": str(NOTICE_S),
    }
    words = [word for option in options.items() for word in option]
    subprocess.run([BIN / "ray", "drain-node", *words], check=True, timeout=60)


@pytest.mark.slow
def test_an_announced_end_of_a_node_is_answered_with_a_checkpoint(tmp_path: Path):
    released_layout.render(tmp_path, {"train": 200, "val": 4, "test": 1})
    root = str(tmp_path / "root")
    import_collection("released", str(tmp_path), root)
    settings = {
        "num_epochs": 2,
        "videos_per_batch": 1,
        "checkpoint_steps": 0,
        "worker_cpus": 1,
        "cache_folder": tmp_path,
    }
    options = [word for name, value in settings.items() for word in (f"--train.{name}", str(value))]
    folder = open_run(root, "spot")
    with several_nodes() as nodes:
        first = nodes.add()
        command = ["train", "--root", root, "--run", "spot", "--address", nodes.address, "--student.hidden_dim", "16"]
        with running(tmp_path, *command, *options) as train:
            train.wait_until(nodes.busy)
            train.wait_until(lambda: list(tmp_path.glob("val-*/ids.json")))  # from here on it trains
            announce_end(nodes, first.node_id)
            checkpoint = train.wait_until(folder.latest_checkpoint)
            nodes.kill(first)
            nodes.add()
            summary = train.result()
    assert int(checkpoint.rpartition("-")[2].partition(".")[0]) % 200 != 0  # not the end of an epoch
    assert summary["epochs"] == 2

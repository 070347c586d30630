"""A study on several nodes: trials share GPUs, and the death of a node costs none of them."""

from collections import Counter

import pytest
import yaml
from support.planted import plant
from support.several_nodes import Nodes, running, several_nodes

SETTINGS = {
    "student": {"hidden_dim": 16, "max_frames": 12, "max_tokens": 6},
    "train": {"num_epochs": 60, "patience": 60, "videos_per_batch": 4, "lr": 1e-3, "hard_pool_size": 4},
    "tune": {"num_trials": 6, "scheduler": "none", "confirm_top": 0, "trial_cpus": 0.5, "trial_gpus": 0.5},
}


def crowded(nodes: Nodes) -> str | None:
    """A node on which two trials live, each with half of its only GPU."""
    trials = Counter(place.node_id for place in nodes.actors() if place.is_alive)
    return next((node_id for node_id, count in trials.items() if count >= 2), None)


@pytest.mark.slow
def test_a_study_survives_the_death_of_a_node_whose_gpu_two_trials_share(tmp_path):
    root = str(tmp_path / "root")
    plant(root)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    with several_nodes() as nodes:
        added = {node.node_id: node for node in (nodes.add(1, num_gpus=1) for _ in range(2))}
        command = ["tune", "--root", root, "--study", "s", "--config", f"{tmp_path}/settings.yaml"]
        with running(tmp_path, *command, "--address", nodes.address) as tune:
            nodes.kill(added[tune.wait_until(lambda: crowded(nodes))])
            summary = tune.result()
    assert summary["states"] == {"finished": 6}
    assert {trial["epochs"] for trial in summary["leaders"]} == {60}

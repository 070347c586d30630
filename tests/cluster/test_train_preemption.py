"""A cloud announces that it takes a node away: training keeps a checkpoint before, and goes on from it elsewhere."""

from pathlib import Path

import pytest
from support import released_layout
from support.clusters import BIN
from support.notices import metadata_service, watching
from support.several_nodes import running, several_nodes

from prvr_ray.features.importing import import_collection
from prvr_ray.runs.run import RunFolder, open_run

NUM_UPDATES = 300  # of an epoch


@pytest.mark.slow
def test_a_spot_notice_is_answered_with_a_checkpoint_that_training_goes_on_from(tmp_path: Path):
    released_layout.render(tmp_path, {"train": NUM_UPDATES, "val": 4, "test": 1})
    root = str(tmp_path / "root")
    import_collection("released", str(tmp_path), root)
    settings = {"num_epochs": 5, "videos_per_batch": 1, "worker_cpus": 1, "cache_folder": tmp_path}
    options = [word for name, value in settings.items() for word in (f"--train.{name}", str(value))]
    folder = open_run(root, "spot")
    with several_nodes() as nodes, metadata_service() as metadata:
        first = nodes.add()
        here = ["--address", nodes.address, "--node-id", first.node_id]
        command = ["train", "--root", root, "--run", "spot", "--address", nodes.address, "--student.hidden_dim", "16"]
        with running(tmp_path, *command, *options) as train, watching("aws", metadata.url, BIN, *here) as watch:
            train.wait_until(folder.metrics)
            metadata.told.set()
            within = train.wait_until(lambda: [n for n in updates(folder) if n % NUM_UPDATES])
            assert watch.wait(timeout=30) == 0
            nodes.kill(first)
            known = epochs(tmp_path)
            for number in updates(folder)[:-1]:
                folder.store.delete(f"checkpoints/last-{number:09d}.safetensors")
            nodes.add()
            assert train.result()["epochs"] == 5
    assert within[0] > NUM_UPDATES
    assert epochs(tmp_path).items() > known.items()  # what had been done was not done again


def updates(folder: RunFolder) -> list[int]:
    """After how many updates the checkpoints were taken that stand."""
    names = [item.key for item in folder.store.list("checkpoints/last-")]
    return [int(name.rpartition("-")[2].partition(".")[0]) for name in names]


def epochs(folder: Path) -> dict[str, int]:
    """When the metrics of each epoch were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("root/runs/spot/metrics/epoch-*.json")}

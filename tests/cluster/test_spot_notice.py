"""cluster/spot_notice.py against a metadata service of our own: a notice reaches Ray, and training checkpoints."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import released_layout
from clusters import BIN
from several_nodes import running, several_nodes

from prvr_ray.runs import RunFolder, open_run
from prvr_ray.stages.imports import import_collection

SCRIPT = Path(__file__).parents[2] / "cluster/spot_notice.py"
NUM_VIDEOS = 150  # and updates of an epoch, with one video a batch


class Metadata(http.server.BaseHTTPRequestHandler):
    """What the services of AWS and Google Cloud answer, once `told` is set and before."""

    told = threading.Event()

    def do_PUT(self) -> None:
        self._answer(200, "token")

    def do_GET(self) -> None:
        if self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"] == "Google":
            self._answer(200, "TRUE" if self.told.is_set() else "FALSE")
        elif self.path.endswith("/spot/instance-action") and self.headers["X-aws-ec2-metadata-token"] == "token":
            self._answer(200 if self.told.is_set() else 404, "{}")
        else:
            self._answer(400, "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def metadata_url() -> Iterator[str]:
    Metadata.told.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def watching(cloud: str, url: str, path: str, *options: str) -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "METADATA_URL": url, "PATH": f"{path}:{os.environ['PATH']}"}
    process = subprocess.Popen([sys.executable, SCRIPT, cloud, *options], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", "120"), ("gcp", "30")])
def test_a_notice_is_passed_on_once_and_not_before_it_stands(metadata_url, tmp_path, cloud, seconds):
    (tmp_path / "ray").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (tmp_path / "ray").chmod(0o755)
    with watching(cloud, metadata_url, str(tmp_path), "--node-id", "n") as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        Metadata.told.set()
        assert process.wait(timeout=20) == 0
    (told,) = (tmp_path / "told").read_text().splitlines()
    assert told.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
    assert told.endswith(f"--deadline-remaining-seconds {seconds} --node-id n")


@pytest.mark.slow
def test_training_checkpoints_in_mid_epoch_when_told_and_goes_on_from_there(metadata_url, tmp_path):
    root = f"{tmp_path}/root"
    released_layout.render(tmp_path / "released", {"train": NUM_VIDEOS, "val": 8})
    import_collection("released", str(tmp_path / "released"), root)
    folder = open_run(root, "r")
    with several_nodes() as nodes:
        nodes.add()
        command = ["train", "--root", root, "--run", "r", "--address", nodes.address, "--student.hidden_dim", "16"]
        options = ["--train.videos_per_batch", "1", "--train.num_epochs", "4", "--train.worker_cpus", "1"]
        with running(tmp_path, *command, *options) as train:
            train.wait_until(folder.metrics, timeout_s=120)
            victim = nodes.busy()
            Metadata.told.set()
            with watching("gcp", metadata_url, str(BIN), "--address", nodes.address, "--node-id", victim.node_id):
                train.wait_until(lambda: updates(folder) % NUM_VIDEOS)
            nodes.kill(victim)
            nodes.add()
            train.result()
    assert [epoch["epoch"] for epoch in folder.metrics()] == list(range(4))


def updates(folder: RunFolder) -> int:
    """Of the newest checkpoint."""
    return int(folder.latest_checkpoint().removesuffix(".safetensors").rpartition("-")[2])

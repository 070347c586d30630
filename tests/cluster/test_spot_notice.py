"""cluster/spot_notice.py against a metadata service of our own: a notice is passed on to Ray."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster/spot_notice.py"


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

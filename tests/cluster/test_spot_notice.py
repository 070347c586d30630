"""cluster/spot_notice.py: a notice, or the end of a pod, is passed on to a stand-in for `ray`."""

import socketserver
import subprocess
import threading
from pathlib import Path

import pytest
from support.notices import metadata_service, watching


@pytest.fixture
def ray_stand_in(tmp_path: Path) -> Path:
    """The folder of a program `ray` that writes down in `told` what it is told."""
    (tmp_path / "ray").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (tmp_path / "ray").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", "120"), ("gcp", "30")])
def test_a_notice_is_passed_on_once_and_not_before_it_stands(ray_stand_in, cloud, seconds):
    with metadata_service() as metadata, watching(cloud, metadata.url, ray_stand_in, "--node-id", "n") as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        metadata.told.set()
        assert process.wait(timeout=20) == 0
    (told,) = (ray_stand_in / "told").read_text().splitlines()
    assert told.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
    assert told.endswith(f"--deadline-remaining-seconds {seconds} --node-id n")


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_connection_that_breaks_is_no_end_of_the_watch(ray_stand_in, cloud):
    class Dropping(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked.set()  # and the connection closes without an answer

    asked = threading.Event()
    with socketserver.TCPServer(("127.0.0.1", 0), Dropping) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with watching(cloud, f"http://127.0.0.1:{server.server_address[1]}", ray_stand_in) as process:
            assert asked.wait(20)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=1)
        server.shutdown()


def test_the_end_of_a_pod_is_passed_on_at_once_and_held_up(ray_stand_in):
    with watching("kubernetes", "http://127.0.0.1:9", ray_stand_in) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        (told,) = (ray_stand_in / "told").read_text().splitlines()
    assert told.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")

"""Ray clusters of their own for tests: a head with its dashboard, and nodes that an autoscaler starts and ends.

Everything runs on loopback under a temporary folder and is ended by process id.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from support.ports import free_port

BIN = Path(sys.executable).parent
STORE_BYTES = 100_000_000
_START_S = 90


@dataclass(frozen=True)
class Head:
    """A running head node: its address for drivers, its dashboard's for jobs, and the folder of its logs."""

    address: str
    dashboard: str
    folder: Path


@contextlib.contextmanager
def running_head(
    num_cpus: int = 2, autoscaling: dict[str, Any] | None = None, environment: dict[str, str] | None = None
) -> Iterator[Head]:
    """Start a head with `ray start` and end it with all that it started.

    Args:
        num_cpus: of the head.
        autoscaling: content of an autoscaling configuration; its provider is completed with the head's address.
        environment: variables of the head's processes, its jobs included.
    """
    with tempfile.TemporaryDirectory(prefix="pr-", ignore_cleanup_errors=True) as name:  # socket paths are short
        folder, port, dashboard_port = Path(name), free_port(), free_port()
        command = [
            str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", "--dashboard-agent-listen-port=0",
            f"--ray-client-server-port={free_port()}", f"--num-cpus={num_cpus}", "--num-gpus=0",
            f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
        ]  # fmt: skip
        variables = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **(environment or {})}
        if autoscaling:
            command.append(f"--autoscaling-config={_autoscaling_file(folder, autoscaling, port)}")
            variables |= _FAKE_NODES
        with open(folder / "head.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
        try:
            dashboard = f"http://127.0.0.1:{dashboard_port}"
            _wait_for(f"{dashboard}/api/version", process, folder / "head.log")
            yield Head(f"127.0.0.1:{port}", dashboard, folder)
        finally:
            _end(process)


_FAKE_NODES = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": "FAKE_HEAD_NODE_ID",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": "FAKE_HEAD_NODE_ID",
}


def _autoscaling_file(folder: Path, autoscaling: dict[str, Any], port: int) -> Path:
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": "FAKE_HEAD_NODE_ID",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "gcs_address": f"127.0.0.1:{port}",
    }
    path = folder / "autoscaling.yaml"
    path.write_text(yaml.safe_dump({**autoscaling, "provider": provider}))
    return path


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ray start ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"nothing at {url} after {_START_S} s: {log.read_text()[-2000:]}")


def _end(process: subprocess.Popen) -> None:
    """Kill a head with all that it started: asked to end, an autoscaling one takes over 15 s."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(started, timeout=10)

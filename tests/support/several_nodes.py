"""Several nodes of one Ray cluster on this machine, a command that runs on them, and the sudden death of a node."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from support.clusters import BIN, STORE_BYTES

POLL_S = 0.05


@dataclass(frozen=True)
class Place:
    """An actor and the node that it is or was on."""

    name: str
    node_id: str
    is_alive: bool


class Nodes:
    """A head without CPUs and the nodes that are added to it."""

    def __init__(self, cluster: Cluster):
        self._cluster = cluster
        self.address: str = cluster.address

    def add(self, num_cpus: int = 1, num_gpus: int = 0, labels: dict[str, str] | None = None) -> Any:
        """Start a node; num_gpus are fake."""
        return self._cluster.add_node(
            num_cpus=num_cpus, num_gpus=num_gpus, labels=labels or {}, object_store_memory=STORE_BYTES
        )

    def kill(self, node: Any) -> None:
        """End a node suddenly, as a cloud does."""
        self._cluster.remove_node(node, allow_graceful=False)

    def announce_end(self, node: Any, seconds_ahead: int) -> None:
        """Drain a node, as an autoscaler does with a cloud's notice."""
        deadline_ms = int((time.time() + seconds_ahead) * 1000)
        preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        is_accepted, reason = GcsClient(self.address).drain_node(node.node_id, preemption, "spot", deadline_ms)
        assert is_accepted, reason

    def clear(self) -> None:
        """End all nodes but the head."""
        for node in list(self._cluster.worker_nodes):
            self._cluster.remove_node(node)

    def busy(self) -> Any | None:
        """A living node with a CPU in use."""
        free = self._cluster.global_state.available_resources_per_node()
        return next((node for node in self._cluster.worker_nodes if free.get(node.node_id, {}).get("CPU", 0) < 1), None)

    def with_actor(self, name: str) -> Any | None:
        """A living node where an actor of that class lives."""
        alive = {place.node_id for place in self.actors() if place.name == name and place.is_alive}
        return next((node for node in self._cluster.worker_nodes if node.node_id in alive), None)

    def actors(self) -> list[Place]:
        """All actors of the cluster so far, the dead included, that have come to a node."""
        table = self._cluster.global_state.actor_table(None, None, None)
        return [
            Place(actor["ActorClassName"], actor["Address"]["NodeID"], actor["State"] == "ALIVE")
            for actor in table.values()
        ]


@contextlib.contextmanager
def several_nodes() -> Iterator[Nodes]:
    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
        "_system_config": {"health_check_period_ms": 1000},  # a dead node is noticed after some seconds, not twenty
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield Nodes(cluster)
    finally:
        cluster.shutdown()


@dataclass
class Command:
    """A running `prvr` command."""

    process: subprocess.Popen
    log: Path

    def wait_until(self, happens: Callable[[], Any], timeout_s: float = 120.0) -> Any:
        """Wait for something while the command runs, and return it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.process.poll() is None:
            if value := happens():
                return value
            time.sleep(POLL_S)
        raise AssertionError(f"it did not happen: {self.log.read_text()[-3000:]}")

    def result(self, timeout_s: float = 180.0) -> dict[str, Any]:
        """The command's summary, once it has ended well; one that hangs says where."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # with PYTHONFAULTHANDLER: every thread's stack, to the log
            self.process.wait(10)
        assert self.process.returncode == 0, self.log.read_text()[-6000:]
        return json.loads(self.log.read_text().splitlines()[-1])


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Command]:
    """Start `prvr ARGUMENTS --json`; it is ended with the context."""
    log = folder / f"{arguments[0]}-{time.time_ns()}.log"
    # Epochs of two seconds leave the time to kill what works on them.
    variables = {**os.environ, "PYTHONFAULTHANDLER": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2"}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [BIN / "prvr", *arguments, "--json"], stdout=file, stderr=subprocess.STDOUT, env=variables
        )
    try:
        yield Command(process, log)
    finally:
        process.kill()
        process.wait()

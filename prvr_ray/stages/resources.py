"""What one worker of a stage occupies, whether the cluster can ever give it, and how many workers to ask for.

Ray waits without an end for a resource that no node has. Stages call `require` first: it asks the autoscaler.
"""

import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

_ANSWER_S = 50.0  # the autoscaler looks at new wishes every 5 s, but one on a new head takes its time to start


@dataclass(frozen=True)
class Worker:
    """What one worker of a stage occupies.

    Attributes:
        name: for messages, and the start of the settings that say so: `encoder` for `encoder_gpus`.
        cpus: CPUs, or a share of one.
        gpus: GPUs, or a share of one.
        memory: bytes; 0: not counted.
        labels: name -> value that its node must carry, such as {"ray.io/accelerator-type": "L4"}.
    """

    name: str
    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def bundle(self) -> dict[str, float]:
        """Its resources under Ray's names, without zeros."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: amount for name, amount in wanted.items() if amount}

    @property
    def options(self) -> dict[str, Any]:
        """The same as keyword arguments of `ray.remote`, of `.options()` and of Ray Data's maps."""
        wanted = {"num_gpus": self.gpus, "memory": self.memory, "label_selector": self.labels}
        return {"num_cpus": self.cpus, **{name: value for name, value in wanted.items() if value}}


def require(worker: Worker, count: int = 1) -> None:
    """Check that the cluster has, or that its autoscaler can start, room for workers; it begins to start nodes then.

    What other jobs hold at this moment counts as coming back.

    Args:
        worker: what one of them occupies.
        count: how many must run at the same time.

    Raises:
        ValueError: neither the present nodes nor a node type of the autoscaler can ever give it. Within a minute.
    """
    nodes = _nodes(worker)
    total = sum(_room(node.total_resources, worker) for node in nodes)
    if total >= count:
        return
    free = sum(_room(node.available_resources, worker) for node in nodes)
    if not _can_autoscaler_give(worker, count - (total - free)):
        raise ValueError(_refusal(worker, count, nodes))


def room(worker: Worker) -> int:
    """How many such workers the present nodes hold, node by node; what others hold at this moment counts as free."""
    return sum(_room(node.total_resources, worker) for node in _nodes(worker))


def pool_size(least: int, most: int, num_items: int, items_per_worker: int = 1) -> int:
    """How many actors to ask for at the start: from the work that there is, not from the nodes of this moment.

    Give it to Ray Data as a fixed size: a pool that may be smaller is cut down to the nodes that stand, so on a cluster
    that scales up from none it stays with one actor. A fixed pool makes the autoscaler bring its nodes, and works with
    those that have come so far.

    Returns:
        One actor for every items_per_worker items, but at least `least` and at most `most`.
    """
    return max(least, min(most, -(-num_items // items_per_worker)))


def _nodes(worker: Worker) -> list[Any]:
    """The present nodes that carry the worker's labels."""
    return [node for node in _cluster_status().cluster_resource_state.node_states if _has_labels(node, worker)]


def _has_labels(node: Any, worker: Worker) -> bool:
    return worker.labels.items() <= dict(node.labels).items()


def _room(resources: Any, worker: Worker) -> int:
    """How many such workers fit."""
    return min(int(resources.get(name, 0.0) / amount + 1e-9) for name, amount in worker.bundle.items())


def _can_autoscaler_give(worker: Worker, count: int) -> bool:
    """Wish for a placement group and read what the autoscaler says to it."""
    if not has_autoscaler():
        return False
    wish = placement_group([worker.bundle] * count, bundle_label_selector=[worker.labels] * count)
    try:
        return _is_granted(wish)
    finally:
        remove_placement_group(wish)


def _is_granted(wish: PlacementGroup) -> bool:
    deadline = time.monotonic() + _ANSWER_S
    wished_in = sys.maxsize  # version of the cluster's state that shows the wish
    while time.monotonic() < deadline:
        if wish.wait(0.5):
            return True
        status = _cluster_status()
        state, answer = status.cluster_resource_state, status.autoscaling_state
        if _names(state.pending_gang_resource_requests, wish):
            wished_in = min(wished_in, state.cluster_resource_state_version)
        if answer.last_seen_cluster_resource_state_version >= wished_in:
            return not _names(answer.infeasible_gang_resource_requests, wish)
    return False


def _names(requests: Any, wish: PlacementGroup) -> bool:
    return any(request.details.startswith(wish.id.hex()) for request in requests)


def _cluster_status() -> Any:
    """Nodes, wishes and the autoscaler's answers. Ray's public API leaves out the wishes that it refuses."""
    gcs = _gcs(ray.get_runtime_context().gcs_address)
    return GetClusterStatusReply.FromString(gcs.get_cluster_status(timeout_s=10))


@lru_cache(maxsize=1)
def _gcs(address: str) -> Any:
    """One connection for all questions."""
    return GcsClient(address)


def has_autoscaler() -> bool:
    """Whether nodes may come."""
    return is_autoscaler_v2(fetch_from_server=True)


def _refusal(worker: Worker, count: int, nodes: list[Any]) -> str:
    wanted = ", ".join(f"{name} {amount:g}" for name, amount in worker.bundle.items())
    return (
        f"the cluster cannot give {count} {worker.name}(s) of {wanted} each: {_lack(worker, nodes)}, and "
        f"{'no node type of its autoscaler does' if has_autoscaler() else 'it has no autoscaler'}; "
        f"change the {worker.name}_ settings or add such nodes"
    )


def _lack(worker: Worker, nodes: list[Any]) -> str:
    if not nodes:
        return f"no node has the labels {worker.labels}"
    most = {name: max(node.total_resources.get(name, 0.0) for node in nodes) for name in worker.bundle}
    missing = [
        f"{amount:g} {name} (at most {most[name]:g})" for name, amount in worker.bundle.items() if most[name] < amount
    ]
    if missing:
        return f"no node has {', '.join(missing)}"
    return f"its nodes have room for {sum(_room(node.total_resources, worker) for node in nodes)}"

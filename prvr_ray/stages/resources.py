"""Describes the resources of workers, checks that the cluster can provide them, and sizes worker pools.

Ray waits forever for a resource that no node has. Stages therefore call `require` first, which asks the autoscaler.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

_ANSWER_S = 50.0  # the autoscaler reads new requests every 5 s, but takes longer to start on a new head


@dataclass(frozen=True)
class Worker:
    """The resources that one worker of a stage reserves.

    Attributes:
        name: for messages, and prefix of the worker's settings: `encoder` for `encoder_gpus`.
        cpus: CPUs, or a fraction of one.
        gpus: GPUs, or a fraction of one.
        memory: bytes; 0: no reservation.
        labels: name -> value that its node must have, such as {"ray.io/accelerator-type": "L4"}.
    """

    name: str
    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def bundle(self) -> dict[str, float]:
        """The resources under Ray's names, without zeros."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def options(self) -> dict[str, Any]:
        """The resources as keyword arguments of `ray.remote`, `.options()` and Ray Data's maps."""
        optional = {"num_gpus": self.gpus, "memory": self.memory, "label_selector": self.labels}
        return {"num_cpus": self.cpus, **{name: value for name, value in optional.items() if value}}


def require(worker: Worker, count: int = 1) -> None:
    """Check that the cluster has room for workers, or that its autoscaler can add nodes for them.

    Resources in use by other jobs count as available, since they will be released. The check may already make the
    autoscaler start nodes, and takes at most a minute.

    Args:
        worker: the resources of one worker.
        count: how many must run at the same time.

    Raises:
        ValueError: neither the present nodes nor any node type of the autoscaler can ever provide this.
    """
    nodes = _nodes(worker)
    total = sum(_room(node.total_resources, worker) for node in nodes)
    if total >= count:
        return
    free = sum(_room(node.available_resources, worker) for node in nodes)
    if not _can_autoscaler_give(worker, count - (total - free)):
        raise ValueError(_refusal(worker, count, nodes))


def count_room(worker: Worker) -> int:
    """Count the workers that fit on the present nodes. Resources in use by others count as free."""
    return sum(_room(node.total_resources, worker) for node in _nodes(worker))


@dataclass(frozen=True)
class Pool:
    """Workers of one kind in a pipeline. At least `least` of them must run at the same time as all other pools."""

    worker: Worker
    least: int
    most: int


def fit_pools(layouts: Sequence[Sequence[Pool]]) -> tuple[int, list[int], bool]:
    """Choose the first layout of a pipeline whose pools can all run at the same time on the present nodes.

    If one pool never starts, the pipeline stalls while the output of the others fills the memory.

    Args:
        layouts: lists of pools; the first pools of a layout grow first.

    Returns:
        The index of the layout, the size of each of its pools, and whether the nodes have that much free now. If not,
        the pipeline waits until other work releases its resources.

    Raises:
        ValueError: the nodes cannot hold `least` workers of every pool, even when nothing else is running.
    """
    present = [node for node in ray.nodes() if node["Alive"]]
    free = ray._private.state.available_resources_per_node()  # the autoscaler's figures lag by a second
    for has_room_now in (True, False):
        nodes = [
            (free.get(node["NodeID"], {}) if has_room_now else node["Resources"], node.get("Labels", {}))
            for node in present
        ]
        for number, pools in enumerate(layouts):
            if sizes := place_pools(pools, nodes):
                return number, sizes, has_room_now
    pools = layouts[-1]
    needs = "; ".join(f"{pool.least} {pool.worker.name}(s) of {_describe_bundle(pool.worker)}" for pool in pools)
    has = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node, _ in nodes)
    raise ValueError(
        f"these workers must run at the same time: {needs}. The nodes have {has}. "
        f"Lower {' or '.join(f'{pool.worker.name}_cpus' for pool in pools)}, or add nodes"
    )


def place_pools(pools: Sequence[Pool], nodes: list[tuple[dict[str, float], dict[str, str]]]) -> list[int] | None:
    """Place `least` workers of every pool on the nodes, then add workers to one pool after the other, up to `most`.

    Args:
        nodes: resources (name -> amount) and labels of each node.

    Returns:
        The size of each pool, or None if `least` workers of every pool do not fit.
    """
    left = [(dict(resources), labels) for resources, labels in nodes]
    # Large workers first: they fit on fewer nodes.
    for pool in sorted(pools, key=lambda pool: sum(pool.worker.bundle.values()), reverse=True):
        if not all(_reserve_place(pool.worker, left) for _ in range(pool.least)):
            return None
    sizes = []
    for pool in pools:
        size = pool.least
        while size < pool.most and _reserve_place(pool.worker, left):
            size += 1
        sizes.append(size)
    return sizes


def _reserve_place(worker: Worker, left: list[tuple[dict[str, float], dict[str, str]]]) -> bool:
    """Reserve one worker's resources on the first node that has them."""
    for resources, labels in left:
        if worker.labels.items() <= labels.items() and _room(resources, worker):
            for name, amount in worker.bundle.items():
                resources[name] -= amount
            return True
    return False


def choose_pool_size(least: int, most: int, num_items: int, items_per_worker: int = 1) -> int:
    """Choose the number of actors from the amount of work, not from the nodes that are present now.

    Pass it to Ray Data as a fixed size. Ray Data would shrink a flexible pool to the present nodes, so on a cluster
    that scales up from zero it would keep one actor. A fixed pool makes the autoscaler add nodes, and
    starts working with those that have arrived.

    Returns:
        One actor per `items_per_worker` items, but at least `least` and at most `most`.
    """
    return max(least, min(most, -(-num_items // items_per_worker)))


def _nodes(worker: Worker) -> list[Any]:
    """List the present nodes that have the worker's labels."""
    return [node for node in _cluster_status().cluster_resource_state.node_states if _has_labels(node, worker)]


def _has_labels(node: Any, worker: Worker) -> bool:
    return worker.labels.items() <= dict(node.labels).items()


def _room(resources: Any, worker: Worker) -> int:
    """Count the workers that fit."""
    return min(int(resources.get(name, 0.0) / amount + 1e-9) for name, amount in worker.bundle.items())


def _can_autoscaler_give(worker: Worker, count: int) -> bool:
    """Request a placement group and read the autoscaler's answer."""
    if not has_autoscaler():
        return False
    wish = placement_group([worker.bundle] * count, bundle_label_selector=[worker.labels] * count)
    try:
        return _is_granted(wish)
    finally:
        remove_placement_group(wish)


def _is_granted(wish: PlacementGroup) -> bool:
    deadline = time.monotonic() + _ANSWER_S
    wished_in = sys.maxsize  # version of the cluster's state that includes the request
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
    """Read nodes, requests and the autoscaler's answers. Ray's public API omits infeasible requests."""
    gcs = _gcs(ray.get_runtime_context().gcs_address)
    return GetClusterStatusReply.FromString(gcs.get_cluster_status(timeout_s=10))


@lru_cache(maxsize=1)
def _gcs(address: str) -> Any:
    """Open one connection for all requests."""
    return GcsClient(address)


def has_autoscaler() -> bool:
    """Whether the cluster can add nodes."""
    return is_autoscaler_v2(fetch_from_server=True)


def _refusal(worker: Worker, count: int, nodes: list[Any]) -> str:
    return (
        f"the cluster cannot give {count} {worker.name}(s) of {_describe_bundle(worker)} each: "
        f"{_lack(worker, nodes)}, and "
        f"{'no node type of its autoscaler does' if has_autoscaler() else 'it has no autoscaler'}; "
        f"change the {worker.name}_ settings or add such nodes"
    )


def _describe_bundle(worker: Worker) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in worker.bundle.items())


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

"""Checks a machine or a cluster before hours are spent on it: each line is ok, or says what to do."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prvr_ray.encoders import describe_encoder
from prvr_ray.stages.session import connect
from prvr_ray.storage import new_name, open_store

_NODE_S = 180.0  # one node's answers: a cold image imports torch and reads the encoder's weights
_SHARED_MEMORY = "/dev/shm"
_MOST_SKEW_S = 5.0  # of two rows of one video the newer counts, by the clocks of their writers
_FULL_SHARE = 0.9  # of a disk; Ray stops spilling at 0.95
_COUNT_GPUS = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True)
class Check:
    """One line. `detail` is what was seen, or what to do."""

    name: str
    ok: bool
    detail: str


def doctor(address: str | None, root: str, encoder: str = "") -> dict[str, Any]:
    """Check every node of a cluster, and its way to storage.

    Args:
        address: of the cluster; None: this machine, with a Ray of its own.
        root: the collection, there or not; a few bytes are written below it and deleted.
        encoder: MODEL:PRETRAINED whose weights every node must have; empty: not checked.

    Returns:
        checks: [{name, ok, detail}], and exit_code 1 where one of them is not ok.
    """
    checks = [_storage("storage from here", root)]
    mark = f"doctor/{new_name('mark')}" if checks[0].ok else ""
    try:
        with contextlib.ExitStack() as stack:
            if mark:
                store = open_store(root)
                stack.callback(store.delete, mark)
                store.put(mark, b"")
            stack.enter_context(connect(address))
            checks.append(Check("ray", True, f"version {ray.__version__} here and there"))
            nodes = [node for node in ray.nodes() if node["Alive"]]
            answers = [
                _look.options(scheduling_strategy=_on(node)).remote(node["Resources"], root, mark, encoder)
                for node in nodes
            ]
            for node, answer in zip(nodes, answers, strict=True):
                checks += _node(node, answer)
    except ValueError as error:
        checks.append(Check("ray", False, str(error)))
    return {"checks": [asdict(check) for check in checks], "exit_code": int(not all(check.ok for check in checks))}


def _node(node: dict[str, Any], answer: ray.ObjectRef) -> Iterator[Check]:
    """One node's own checks under its name, and its clock against ours."""
    name = node["NodeManagerAddress"]
    try:
        for check in ray.get(answer, timeout=_NODE_S):
            yield Check(f"{name} {check.name}", check.ok, check.detail)
        begun = time.time()
        theirs = ray.get(_clock.options(scheduling_strategy=_on(node)).remote(), timeout=_NODE_S)
        skew_s = max(begun - theirs, theirs - time.time(), 0.0)
    except ray.exceptions.RayError as error:
        yield Check(name, False, f"{str(error).splitlines()[-1]}; is prvr_ray installed in its image?")
        return
    ok = skew_s <= _MOST_SKEW_S
    yield Check(f"{name} clock", ok, f"within {skew_s:.1f} s of ours" + ("" if ok else "; run chrony or ntpd on it"))


def _on(node: dict[str, Any]) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


@ray.remote(num_cpus=0, max_retries=0)
def _clock() -> float:
    return time.time()


@ray.remote(num_cpus=0, max_retries=0)
def _look(resources: dict[str, float], root: str, mark: str, encoder: str) -> list[Check]:
    checks = [_storage("storage", root, mark), _gpus(int(resources.get("GPU", 0))), _disk()]
    checks.append(_shared_memory(int(resources.get("object_store_memory", 0))))
    return [*checks, _encoder(encoder)] if encoder else checks


def _storage(name: str, root: str, mark: str = "") -> Check:
    """Write, read both ways, conditional put and delete; mark: an object that stands there."""
    key = f"doctor/{new_name('check')}"
    try:
        store = open_store(root)
        with contextlib.ExitStack() as stack:
            first = store.put_if_absent(key, b"first")
            stack.callback(store.delete, key)
            second = store.put_if_absent(key, b"second")
            stands = store.get(key)
            with store.open(key) as file:  # Arrow's own way, on which shards are read
                opened = file.read()
            is_shared = not mark or store.exists(mark)
    except Exception as error:  # every store has its own errors; this line is where they are shown
        return Check(
            name, False, f"{root}: {' '.join(str(error).split())}; check the role's permissions and the bucket"
        )
    if not is_shared:
        return Check(name, False, f"{root}: what was put elsewhere is not there; ROOT must be storage that all share")
    if (first, second, stands, opened) != (True, False, b"first", b"first"):
        return Check(name, False, f"{root} overwrites what a conditional put must keep; use another store")
    return Check(name, True, f"{root}: write, conditional put, read, delete")


def _gpus(num_promised: int) -> Check:
    """Ray's count of GPUs against what torch can open, in a process that Ray has not hidden them from."""
    if not num_promised:
        return Check("gpus", True, "none")
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", _COUNT_GPUS]
    counted = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_NODE_S)
    num_seen = int(counted.stdout or 0)
    detail = f"Ray counts {num_promised}, torch sees {num_seen}"
    if num_seen < num_promised:
        return Check("gpus", False, f"{detail}; install the driver, and start the container with --gpus all")
    return Check("gpus", True, detail)


def _disk() -> Check:
    node = ray._private.worker._global_node
    assert node is not None, "runs inside a Ray task"
    folder = node.get_session_dir_path()
    usage = shutil.disk_usage(folder)
    detail = f"{usage.free / 2**30:.0f} GiB free at {folder}"
    if usage.used > _FULL_SHARE * usage.total:
        return Check(
            "disk", False, f"{detail}, which is nearly full; free some, or start Ray with --temp-dir elsewhere"
        )
    return Check("disk", True, detail)


def _shared_memory(num_bytes: int) -> Check:
    """Whether Ray's object store lies in memory: Ray moves it to the disk where shared memory is smaller."""
    if not os.path.isdir(_SHARED_MEMORY):
        return Check("shared memory", True, f"no {_SHARED_MEMORY} on this system; Ray needs none")
    total = shutil.disk_usage(_SHARED_MEMORY).total
    detail = f"{total / 2**30:.1f} GiB for an object store of {num_bytes / 2**30:.1f} GiB"
    if total < num_bytes:
        return Check("shared memory", False, f"{detail}; start the container with --shm-size {num_bytes}")
    return Check("shared memory", True, detail)


def _encoder(name: str) -> Check:
    try:
        spec = describe_encoder(name)
    except ValueError as error:
        return Check("encoder", False, str(error))
    return Check("encoder", True, f"{name}: weights {spec.weights_sha256[:12]}, {spec.embed_dim} dimensions")

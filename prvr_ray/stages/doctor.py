"""`prvr doctor`: checks a machine or cluster before long jobs. Each check is ok or says what to do."""

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

from prvr_ray.collection import open_collection, unmatched_captions
from prvr_ray.encoders import describe_encoder
from prvr_ray.retrieval.matmul import has_c_compiler
from prvr_ray.stages.session import connect
from prvr_ray.storage import make_shard_name, open_store

_NODE_S = 180.0  # timeout per node: on a cold image it imports torch and reads the encoder's weights
_SHARED_MEMORY = "/dev/shm"
_MOST_SKEW_S = 5.0  # of two rows of one video the newer is live, by the clocks of their writers
_FULL_SHARE = 0.9  # of a disk; Ray stops spilling at 0.95
_COUNT_GPUS = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True)
class Check:
    """The result of one check. `detail` says what was found or what to do."""

    name: str
    ok: bool
    detail: str


def doctor(address: str | None, root: str, encoder: str = "") -> dict[str, Any]:
    """Check every node of a cluster and its access to storage.

    Args:
        address: of the cluster; None: this machine, where Ray is started.
        root: URI of the collection, which need not exist; a few bytes are written below it and deleted.
        encoder: MODEL:PRETRAINED whose weights every node must have; empty: not checked.

    Returns:
        checks: [{name, ok, detail}], and exit_code 1 if any of them is not ok.
    """
    checks = [_storage("storage from here", root)]
    mark = f"doctor/{make_shard_name('mark')}" if checks[0].ok else ""
    if checks[0].ok:
        checks += _check_captions(root)
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
    """Yield the checks of one node, prefixed with its name, and compare its clock with ours."""
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
    num_gpus = int(resources.get("GPU", 0))
    checks = [_storage("storage", root, mark), _gpus(num_gpus), _disk()]
    if num_gpus:
        checks.append(_compiler())
    checks.append(_shared_memory(int(resources.get("object_store_memory", 0))))
    return [*checks, _check_encoder(encoder)] if encoder else checks


def _storage(name: str, root: str, mark: str = "") -> Check:
    """Check put, both ways of reading, conditional put and delete. mark: key of an object that must be visible."""
    key = f"doctor/{make_shard_name('check')}"
    try:
        store = open_store(root)
        with contextlib.ExitStack() as stack:
            first = store.put_if_absent(key, b"first")
            stack.callback(store.delete, key)
            second = store.put_if_absent(key, b"second")
            content = store.get(key)
            with store.open(key) as file:  # random access, as shards are read
                opened = file.read()
            is_shared = not mark or store.exists(mark)
    except Exception as error:  # every store has its own errors; the check reports them
        return Check(
            name, False, f"{root}: {' '.join(str(error).split())}; check the role's permissions and the bucket"
        )
    if not is_shared:
        return Check(
            name,
            False,
            f"{root}: an object put by another node is not visible here; ROOT must be storage that all nodes share",
        )
    if (first, second, content, opened) != (True, False, b"first", b"first"):
        return Check(name, False, f"{root}: a conditional put replaces an existing object; use another store")
    return Check(name, True, f"{root}: write, conditional put, read, delete")


def _gpus(num_promised: int) -> Check:
    """Compare Ray's count of GPUs with torch's, counted in a process from which Ray has not hidden them."""
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


def _compiler() -> Check:
    """Check for the C compiler with which Triton builds the launchers of the scoring kernels."""
    if has_c_compiler():
        return Check("compiler", True, "a C compiler for Triton")
    return Check("compiler", False, "no C compiler, so scoring leaves out its Triton kernels; install gcc in the image")


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
    """Check that Ray's object store fits in shared memory: Ray puts a larger one on disk."""
    if not os.path.isdir(_SHARED_MEMORY):
        return Check("shared memory", True, f"no {_SHARED_MEMORY} on this system; Ray needs none")
    total = shutil.disk_usage(_SHARED_MEMORY).total
    detail = f"{total / 2**30:.1f} GiB for an object store of {num_bytes / 2**30:.1f} GiB"
    if total < num_bytes:
        return Check("shared memory", False, f"{detail}; start the container with --shm-size {num_bytes}")
    return Check("shared memory", True, detail)


def _check_encoder(name: str) -> Check:
    try:
        spec = describe_encoder(name)
    except ValueError as error:
        return Check("encoder", False, str(error))
    return Check("encoder", True, f"{name}: weights {spec.weights_sha256[:12]}, {spec.embed_dim} dimensions")


def _check_captions(root: str) -> list[Check]:
    """Check that captions name videos of the collection. Nothing is checked before both exist."""
    collection = open_collection(root)
    queries, videos = collection.queries(), collection.videos()
    if not len(queries) or not len(videos):
        return []
    known = {*videos["video_id"].to_pylist(), *collection.removed().to_pylist()}
    found = unmatched_captions(queries, known)
    if not found:
        return [Check("captions", True, f"{len(queries)}, all of known videos")]
    such_as = ", ".join(found["such_as"])
    advice = "correct the names in the caption file and import it again"
    detail = f"{found['captions']} of {len(queries)} name no video of the collection ({such_as}): {advice}"
    return [Check("captions", False, detail)]

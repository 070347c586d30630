"""`prvr verify`: checks that every shard of an index is there and undamaged.

Readers trust the manifest and notice a bad shard only when they reach it; this finds all of them beforehand. Shards
carry no checksum. Their rows have length 1, though, so a vector whose bytes have changed much is found by its length.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from prvr_ray.collection import existing_collection
from prvr_ray.index.index import IndexFolder, Json, LoadedShard
from prvr_ray.progress import Steps
from prvr_ray.storage import ShardError

_PARALLEL_READS = 4  # of whole shards, up to 256 MiB each
_FRAMES_AT_ONCE = 16_384
_TOLERANCE = 0.01  # rounding to float16 changes the length of a row by less than 0.001
_ADVICE = "Restore what is missing or damaged, or delete what is damaged and run the same `prvr index` again"


def verify(root: str, index: str, *, quick: bool = False) -> dict[str, Any]:
    """Check all shards that readers of an index see.

    Args:
        root: the collection.
        index: name of the index.
        quick: only compare the listing of the folder with the manifest; read no shard.

    Returns:
        Numbers of shards, of windows (superseded ones included), of bytes, and of shards that no manifest names: those
        of a job at work or killed, and those that are wholly superseded. Where there are bad shards, `bad` gives the
        reason for each, and exit_code is 1.

    Raises:
        ValueError: there is no such collection or index.
        OSError: the store cannot be reached or denies access.
    """
    folder = IndexFolder(existing_collection(root), index)
    spec = folder.spec()
    shards, bad = folder.plan()
    sizes = {item.key: item.size for item in folder.store.list()}
    with ThreadPoolExecutor(_PARALLEL_READS) as readers, Steps("verify", len(shards), "shards") as steps:
        for reason in readers.map(lambda shard: _find_fault(folder, shard, sizes, spec, quick), shards):
            bad += [reason] if reason else []
            steps.advance(note=f"{len(bad)} bad" if bad else "")
    unlisted = set(folder.shards.present()).difference(shard["name"] for shard in shards)
    counts: dict[str, Any] = {
        "shards": len(shards),
        "windows": sum(shard["rows"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards_in_no_manifest": len(unlisted),
        "exit_code": int(bool(bad)),
    }
    return counts | ({"bad": bad, "warning": f"{len(bad)} bad shards. {_ADVICE}"} if bad else {})


def _find_fault(folder: IndexFolder, shard: Json, sizes: Mapping[str, int], spec: Json, quick: bool) -> str | None:
    """Return what is wrong with a shard; None if nothing is."""
    place = f"{folder.store.uri}/{shard['name']}"
    if shard["name"] not in sizes:
        return f"{place} is missing"
    if sizes[shard["name"]] != shard["bytes"]:
        return f"{place} has {sizes[shard['name']]} bytes, not the {shard['bytes']} that its manifest states"
    if quick:
        return None
    try:
        loaded = folder.load({**shard, "skip": []}, spec["branches"], spec["dim"])
    except ShardError as error:
        return str(error)
    except KeyError as error:
        return f"{place} is damaged: no column {error}"
    return _find_bad_content(place, shard, loaded, spec["branches"])


def _find_bad_content(place: str, shard: Json, loaded: LoadedShard, branches: Sequence[str]) -> str | None:
    num_rows, num_edges = len(loaded.numbers), int(loaded.block.branch_offsets[0][-1]) + len(loaded.numbers)
    if num_rows != shard["rows"]:
        return f"{place} has {num_rows} rows, not the {shard['rows']} that its manifest states"
    if len(loaded.edges_s) != num_edges or not np.isfinite(loaded.edges_s).all():
        return f"{place} is damaged: the times of its frames"
    for branch, frames_FD in zip(branches, loaded.block.frames, strict=True):
        if num_bad := _count_bad_rows(np.asarray(frames_FD)):
            return f"{place} is damaged: {num_bad} of {len(frames_FD)} vectors of {branch} have not length 1"
    return None


def _count_bad_rows(frames_FD: np.ndarray) -> int:
    """Count rows whose length is neither 1 nor 0, or not finite. A frame without any feature is a row of zeros."""
    num_bad = 0
    for start in range(0, len(frames_FD), _FRAMES_AT_ONCE):
        part_FD = np.asarray(frames_FD[start : start + _FRAMES_AT_ONCE], np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            length_F = np.sqrt(np.einsum("fd,fd->f", part_FD, part_FD))
        num_bad += int(np.sum(~((np.abs(length_F - 1) < _TOLERANCE) | (length_F == 0))))
    return num_bad

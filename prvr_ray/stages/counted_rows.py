"""Which rows of an index do not count, found shard by shard. No Ray here.

The rule is `prvr_ray.collection.newest_windows`. It needs every row at once; of a hundred million windows that is more
than one machine holds. A row can only lose to another one of its video, and nearly all videos have their rows in one
shard, so here a shard leaves no more behind than a hash of each video. Rows are compared only where hashes meet.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import ShardFolder, by_shard, windows_that_count

_PARALLEL_READS = 16
_COLUMNS = ["video_id", "added_at", "window"]
_PER_WINDOW = ["video_id", "window"]
_PER_FILE = ["video_id", "added_at"]


@dataclass(frozen=True)
class ShardLook:
    """What is kept of one shard.

    Attributes:
        num_rows: of the shard.
        removed: its rows of removed videos.
        hashes: int64, sorted: one of each other video; equal ids have equal ones in this process.
        is_plain: no row of it loses to another one of it.
        found: those of the ids that were asked for which it holds.
    """

    name: str
    num_rows: int
    removed: np.ndarray
    hashes: np.ndarray
    is_plain: bool
    found: frozenset[str]


def look_at(folder: ShardFolder, name: str, removed: pa.Array, asked: set[str]) -> ShardLook:
    """Read the small columns of a shard.

    Args:
        removed: ids of removed videos. asked: ids that the caller looks for.

    Raises:
        ShardError: it is missing or damaged.
    """
    rows = _read(folder, name)
    is_removed = pc.is_in(rows["video_id"], removed)
    kept = rows.filter(pc.invert(is_removed))
    videos = kept["video_id"].unique()
    is_plain = _count(kept, _PER_WINDOW) == len(kept) and _count(kept, _PER_FILE) == len(videos)
    found = frozenset(asked.intersection(pc.unique(rows["video_id"]).to_pylist() if asked else ()))
    return ShardLook(name, len(rows), np.flatnonzero(is_removed), np.unique(_hashes(videos)), is_plain, found)


def rows_to_skip(folder: ShardFolder, looks: Iterable[ShardLook], removed: pa.Array) -> dict[str, np.ndarray]:
    """Per shard, the rows that do not count, rising."""
    looks = list(looks)
    hashes = np.sort(np.concatenate([np.zeros(0, np.int64), *(look.hashes for look in looks)]))
    repeated, unclear = hashes[1:][hashes[1:] == hashes[:-1]], (look.hashes for look in looks if not look.is_plain)
    doubtful = np.concatenate([repeated, *unclear])
    skipped = {look.name: look.removed for look in looks}
    involved = [look.name for look in looks if np.isin(look.hashes, doubtful).any()]
    if not involved:
        return skipped
    rows = pa.concat_tables([_of_videos(_read(folder, name), doubtful) for name in involved])
    counted = dict(by_shard(windows_that_count(rows, removed)))
    for name, compared in by_shard(rows):
        lost = np.setdiff1d(compared, counted.get(name, np.zeros(0, np.int64)))
        skipped[name] = np.union1d(skipped[name], lost)
    return skipped


def count_windows(folder: ShardFolder, removed: pa.Array) -> pa.Table:
    """How many windows of each version of a video count: video_id, added_at and `windows`.

    Raises:
        ShardError: a shard is damaged.
    """
    with ThreadPoolExecutor(_PARALLEL_READS) as readers:
        looks = list(readers.map(partial(look_at, folder, removed=removed, asked=set()), folder.live()))
        skipped = rows_to_skip(folder, looks, removed)
        counts = list(readers.map(lambda look: _per_file(folder, look.name, skipped[look.name]), looks))
    none = pa.table([folder.schema.empty_table()[name] for name in _PER_FILE], _PER_FILE)
    total = pa.concat_tables([none.append_column("windows", pa.array([], pa.int64())), *counts])
    return total.group_by(_PER_FILE).aggregate([("windows", "sum")]).rename_columns([*_PER_FILE, "windows"])


def _per_file(folder: ShardFolder, name: str, skipped: np.ndarray) -> pa.Table:
    rows = _read(folder, name)
    rows = rows.take(np.setdiff1d(np.arange(len(rows)), skipped))
    return rows.group_by(_PER_FILE).aggregate([("window", "count")]).rename_columns([*_PER_FILE, "windows"])


def _read(folder: ShardFolder, name: str) -> pa.Table:
    return ShardFolder(folder.store, folder.schema, (name,)).scan(_COLUMNS)


def _of_videos(rows: pa.Table, hashes: np.ndarray) -> pa.Table:
    ids = rows["video_id"].combine_chunks().dictionary_encode()
    is_wanted = np.isin(_hashes(ids.dictionary), hashes)
    return rows.filter(pa.array(is_wanted[ids.indices.to_numpy(zero_copy_only=False)]))


def _hashes(ids: pa.Array) -> np.ndarray:
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))


def _count(rows: pa.Table, keys: list[str]) -> int:
    return len(rows.group_by(keys).aggregate([]))

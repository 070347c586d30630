"""Finds the superseded rows of an index, shard by shard.

The rule is `prvr_ray.collection.live_windows`: of each video the newest file, of each window the first row. At a
hundred million windows, applying it to all rows at once would need more memory than one machine has. But a row can only
be superseded by another row of its video, and nearly every video lies in a single shard. So each shard is read once, a
hash of each of its videos is kept, and rows are compared only where two shards have a hash in common.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from prvr_ray.collection import ShardFolder, by_shard, live_windows

_PARALLEL_READS = 16
_COLUMNS = ["video_id", "added_at", "window"]
_PER_WINDOW = ["video_id", "window"]
_PER_FILE = ["video_id", "added_at"]
_NONE_REMOVED = pa.array([], pa.string())


@dataclass(frozen=True)
class ShardSummary:
    """The facts kept about one shard.

    Attributes:
        num_rows: of the shard.
        hashes: int64, sorted, one for each video; equal ids have equal hashes within this process.
        is_plain: whether no row of the shard supersedes another row of it.
        files: how many windows it holds of each version of a video: video_id, added_at, `windows`.
    """

    name: str
    num_rows: int
    hashes: np.ndarray
    is_plain: bool
    files: pa.Table


def summarize_shard(folder: ShardFolder, name: str) -> ShardSummary:
    """Read the small columns of a shard.

    Raises:
        ShardError: it is missing or damaged.
    """
    rows = _read_small_columns(folder, name)
    files, videos = _count_by_file(rows), rows["video_id"].unique()
    is_plain = len(rows.group_by(_PER_WINDOW).aggregate([])) == len(rows) and len(files) == len(videos)
    return ShardSummary(name, len(rows), np.unique(_hash(videos)), is_plain, files)


def summarize_shards(
    folder: ShardFolder, names: Sequence[str], known: Mapping[str, ShardSummary]
) -> dict[str, ShardSummary]:
    """Read the small columns of the shards that are not known yet. Shards never change, so known ones are not read.

    Raises:
        ShardError: a shard is missing or damaged.
    """
    new = [name for name in names if name not in known]
    with ThreadPoolExecutor(_PARALLEL_READS) as readers:
        found = dict(zip(new, readers.map(partial(summarize_shard, folder), new), strict=True))
    return {name: found[name] if name in found else known[name] for name in names}


def superseded_rows(folder: ShardFolder, summaries: Iterable[ShardSummary]) -> dict[str, np.ndarray]:
    """Return, per shard, its rows that are superseded by another row of these shards, ascending."""
    summaries = list(summaries)
    nothing = np.zeros(0, np.int64)
    found = {item.name: nothing for item in summaries}
    hashes = np.sort(np.concatenate([nothing, *(item.hashes for item in summaries)]))
    shared = hashes[1:][hashes[1:] == hashes[:-1]]
    doubtful = np.concatenate([shared, *(item.hashes for item in summaries if not item.is_plain)])
    involved = [item.name for item in summaries if np.isin(item.hashes, doubtful).any()]
    if not involved:
        return found
    rows = pa.concat_tables([_of_videos(_read_small_columns(folder, name), doubtful) for name in involved])
    live = dict(by_shard(live_windows(rows, _NONE_REMOVED)))
    for name, compared in by_shard(rows):
        found[name] = np.setdiff1d(compared, live.get(name, nothing))
    return found


def count_windows(
    folder: ShardFolder, summaries: Iterable[ShardSummary], superseded: Mapping[str, np.ndarray]
) -> pa.Table:
    """Count the live windows of each version of a video: video_id, added_at and `windows`."""

    def of_shard(item: ShardSummary) -> pa.Table:
        if not len(superseded[item.name]):
            return item.files
        rows = _read_small_columns(folder, item.name)
        return _count_by_file(rows.take(np.setdiff1d(np.arange(len(rows)), superseded[item.name])))

    none = _count_by_file(ShardFolder(folder.store, folder.schema, ()).scan(_COLUMNS))
    total = pa.concat_tables([none, *map(of_shard, summaries)])
    return total.group_by(_PER_FILE).aggregate([("windows", "sum")]).rename_columns([*_PER_FILE, "windows"])


def has_video(summaries: Iterable[ShardSummary], video_id: str) -> bool:
    """Return whether any of the shards holds windows of a video."""
    wanted = _hash(pa.array([video_id], pa.string()))
    return any(np.isin(wanted, item.hashes).any() for item in summaries)


def _count_by_file(rows: pa.Table) -> pa.Table:
    return rows.group_by(_PER_FILE).aggregate([("window", "count")]).rename_columns([*_PER_FILE, "windows"])


def _read_small_columns(folder: ShardFolder, name: str) -> pa.Table:
    return ShardFolder(folder.store, folder.schema, (name,)).scan(_COLUMNS)


def _of_videos(rows: pa.Table, hashes: np.ndarray) -> pa.Table:
    ids = rows["video_id"].combine_chunks().dictionary_encode()
    is_wanted = np.isin(_hash(ids.dictionary), hashes)
    return rows.filter(pa.array(is_wanted[ids.indices.to_numpy(zero_copy_only=False)]))


def _hash(ids: pa.Array) -> np.ndarray:
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))

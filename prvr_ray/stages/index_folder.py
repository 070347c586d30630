"""An index as its readers see it: which shards there are, which rows of them count, and a shard as a block of frames.

index/<index>/  spec.json               the run, its student, the feature set and the windowing
                shard-*.parquet         rows of schema.INDEX
                written-*.json          shard -> its first video, of one `prvr index`: how a lost shard is noticed
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.collection import Collection, ShardFolder, by_shard, newest_windows, read_spec
from prvr_ray.retrieval.blocks import FrameBlock
from prvr_ray.runs import RunFolder, open_run
from prvr_ray.storage import ShardError, Store, get_json, read_table

WRITTEN = "written-"
_PARALLEL_READS = 16

Json = dict[str, Any]


@dataclass(frozen=True)
class LoadedShard:
    """A shard in memory.

    Attributes:
        block: its windows.
        numbers: of each window within its video.
        edges_s: the time edges of all windows one after another: window w's begin at first_edge[w].
    """

    block: FrameBlock
    numbers: np.ndarray
    edges_s: np.ndarray

    @property
    def first_edge(self) -> np.ndarray:
        return self.block.branch_offsets[0][:-1] + np.arange(len(self.block.video_ids))


@dataclass(frozen=True)
class IndexFolder:
    """index/<index> of a collection. A small value that travels to workers."""

    collection: Collection
    name: str

    @property
    def store(self) -> Store:
        return self.collection.store.child(f"index/{self.name}")

    @property
    def shards(self) -> ShardFolder:
        return ShardFolder(self.store, schema.INDEX)

    def spec(self) -> Json:
        """What the index was made with.

        Raises:
            ValueError: there is no such index.
        """
        try:
            return read_spec(self.store)
        except ValueError as error:
            raise ValueError(f"index {self.name!r}: {error}; `prvr index` makes one") from None

    def run(self) -> RunFolder:
        """The run whose student made the index.

        Raises:
            ValueError: it is gone, or its best student is another one now, which would not understand these vectors.
        """
        spec = self.spec()
        run = open_run(self.collection.store.uri, spec["run"])
        best, made_with = best_weights(run), {"weights": spec["weights"], "weights_sha256": spec["weights_sha256"]}
        if best != made_with:
            raise ValueError(
                f"index {self.name!r} was made with {_said(made_with)}, the best of run {spec['run']!r} is "
                f"{_said(best)} now: make a new index"
            )
        return run

    def windows(self) -> pa.Table:
        """The row that counts of every window: video_id, added_at, window, `shard` and `row`."""
        return newest_windows(self.shards, self.collection.removed())

    def plan(self) -> tuple[list[Json], list[str]]:
        """What a job that reads the whole index shall read.

        Returns:
            Per shard a JSON value: its `name`, `bytes`, number of `rows`, and rows to `skip`, which do not count. And
            the shards that should be there but are missing or cannot be read, each with its reason.
        """
        sizes = {item.key: item.size for item in self.store.list()}
        counted = self._counted(self.shards.live())
        broken = [found for found in counted.values() if isinstance(found, str)]
        readable = {name: found for name, found in counted.items() if isinstance(found, int)}
        removed = self.collection.removed()
        windows = newest_windows(ShardFolder(self.store, schema.INDEX, tuple(readable)), removed)
        kept = dict(by_shard(windows))
        nothing = np.zeros(0, np.int64)
        shards = [
            {
                "name": name,
                "bytes": sizes[name],
                "rows": num_rows,
                "skip": np.setdiff1d(np.arange(num_rows), kept.get(name, nothing)).tolist(),
            }
            for name, num_rows in readable.items()
        ]
        return shards, broken + self._lost(
            set(sizes), pa.concat_arrays([removed, windows["video_id"].combine_chunks()])
        )

    def unreadable(self, shards: Sequence[Json]) -> dict[str, str]:
        """Those of a plan's shards that are missing or cannot be read any more: name -> reason."""
        counted = self._counted([shard["name"] for shard in shards])
        return {name: found for name, found in counted.items() if isinstance(found, str)}

    def _counted(self, names: Sequence[str]) -> dict[str, int | str]:
        """Each shard's number of rows, or why it cannot be read."""
        with ThreadPoolExecutor(_PARALLEL_READS) as readers:
            return dict(zip(names, readers.map(self._num_rows, names), strict=True))

    def _num_rows(self, name: str) -> int | str:
        try:
            return len(read_table(self.store, name, ["window"]))
        except ShardError as error:
            return str(error)

    def _lost(self, standing: set[str], known_videos: pa.Array) -> list[str]:
        """Shards that were written and are gone, with videos that stand nowhere else: not the work of a compaction."""
        written = {
            name: video_id
            for key in sorted(standing)
            if key.startswith(WRITTEN)
            for name, video_id in get_json(self.store, key).items()
        }
        gone = sorted(name for name in written if name not in standing)
        is_known = pc.is_in(pa.array([written[name] for name in gone], pa.string()), known_videos).to_pylist()
        return [f"{self.store.uri}/{name} is missing" for name, known in zip(gone, is_known, strict=True) if not known]

    def load(self, shard: Json, branches: Sequence[str], dim: int) -> LoadedShard:
        """Read a planned shard.

        Raises:
            ShardError: it is missing or damaged.
        """
        rows = read_table(self.store, shard["name"], ["video_id", "window", "num_frames", "edges_s", *branches])
        if shard["skip"]:
            rows = rows.take(np.setdiff1d(np.arange(len(rows)), shard["skip"]))
        offsets = np.concatenate([[0], np.cumsum(rows["num_frames"].to_numpy())])
        try:
            frames = [stacked(rows[branch], np.dtype("<f2"), dim) for branch in branches]
            block = FrameBlock(rows["video_id"].to_pylist(), offsets, frames)
        except ValueError as error:
            raise ShardError(f"{self.store.uri}/{shard['name']} is damaged: {error}") from error
        return LoadedShard(block, rows["window"].to_numpy(), stacked(rows["edges_s"], np.dtype("<f8"), 1).ravel())


def best_weights(run: RunFolder) -> dict[str, str]:
    """Which student of a run is the best: `weights`, its key, and `weights_sha256`.

    Raises:
        ValueError: no epoch has ended yet, or there is no such run.
    """
    key = str(run.best()["weights"])
    return {"weights": key, "weights_sha256": hashlib.sha256(run.store.get(key)).hexdigest()}


def _said(best: dict[str, str]) -> str:
    return f"{best['weights']} ({best['weights_sha256'][:12]})"


def stacked(column: pa.ChunkedArray, dtype: np.dtype, dim: int) -> np.ndarray:
    """The vectors of all values of a large_binary column, one after another: (rows, dim). One chunk needs no copy."""
    parts = [_values(chunk, dtype) for chunk in column.chunks if len(chunk)]
    values = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype), *parts])
    return values.reshape(-1, dim)


def _values(chunk: pa.LargeBinaryArray, dtype: np.dtype) -> np.ndarray:
    _, offsets, data = chunk.buffers()
    first, last = np.frombuffer(offsets, np.int64)[[chunk.offset, chunk.offset + len(chunk)]]
    return np.frombuffer(data, dtype, count=(last - first) // dtype.itemsize, offset=first)

"""An index as its readers see it: which shards there are, which rows of them count, and a shard as a block of frames.

index/<index>/  spec.json               the run, its student, the feature set and the windowing
                shard-*.parquet         rows of schema.INDEX
                written-*.json          shard -> its first video: how a lost shard is noticed
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.collection import Collection, ShardFolder, newest_windows, read_spec
from prvr_ray.retrieval.blocks import FrameBlock
from prvr_ray.runs import RunFolder, open_run
from prvr_ray.stages.counted_rows import ShardLook, count_windows, look_at, rows_to_skip
from prvr_ray.storage import ShardError, Store, check_name, get_json, new_name, put_json, read_table

_WRITTEN = "written-"
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
    """index/<index> of a collection. A small value that travels to workers.

    Raises:
        ValueError: a name that is no single folder's.
    """

    collection: Collection
    name: str

    def __post_init__(self) -> None:
        check_name("index", self.name)

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
        best, made_with = run.best_weights(), {"weights": spec["weights"], "weights_sha256": spec["weights_sha256"]}
        if best != made_with:
            raise ValueError(
                f"index {self.name!r} was made with {_said(made_with)}, the best of run {spec['run']!r} is "
                f"{_said(best)} now: make a new index"
            )
        return run

    def windows(self) -> pa.Table:
        """The row that counts of every window: video_id, added_at, window, `shard` and `row`."""
        return newest_windows(self.shards, self.collection.removed())

    def count_windows(self) -> pa.Table:
        """How many windows count of each version of a video: video_id, added_at, `windows`; no table of all windows."""
        return count_windows(self.shards, self.collection.removed())

    def note_shards(self) -> None:
        """Note every shard that is not noted yet, with a video that it holds, so that its loss is noticed.

        A job that is killed leaves that to the next one.
        """
        written = self._written({item.key for item in self.store.list()})
        names = [name for name in self.shards.live() if name not in written]
        with ThreadPoolExecutor(_PARALLEL_READS) as readers:
            firsts = dict(zip(names, readers.map(self._first_video, names), strict=True))
        if firsts:
            put_json(self.store, f"{_WRITTEN}{new_name('shard').removesuffix('.parquet')}.json", firsts)

    def _first_video(self, shard: str) -> str:
        first: str = read_table(self.store, shard, ["video_id"])["video_id"][0].as_py()
        return first

    def plan(self) -> tuple[list[Json], list[str]]:
        """What a job that reads the whole index shall read.

        Returns:
            Per shard a JSON value: its `name`, `bytes`, number of `rows`, and rows to `skip`, which do not count. And
            the shards that should be there but are missing or cannot be read, each with its reason.
        """
        live = self.shards.live()
        sizes = {item.key: item.size for item in self.store.list()}  # after the shards: more may come meanwhile
        live = [name for name in live if name in sizes]
        removed, gone = self.collection.removed(), self._gone(set(sizes))
        look_at_one = partial(self._look_at, removed=removed, asked=set(gone.values()))
        with ThreadPoolExecutor(_PARALLEL_READS) as readers:
            found = list(readers.map(look_at_one, live))
        looks = [item for item in found if isinstance(item, ShardLook)]
        skipped = rows_to_skip(self.shards, looks, removed)
        shards = [
            {"name": look.name, "bytes": sizes[look.name], "rows": look.num_rows, "skip": skipped[look.name].tolist()}
            for look in looks
        ]
        standing = {*removed.to_pylist(), *(video_id for look in looks for video_id in look.found)}
        lost = [f"{self.store.uri}/{name} is missing" for name, video_id in gone.items() if video_id not in standing]
        return shards, [item for item in found if isinstance(item, str)] + lost

    def unreadable(self, shards: Sequence[Json]) -> dict[str, str]:
        """Those of a plan's shards that are missing or cannot be read any more: name -> reason."""
        names = [shard["name"] for shard in shards]
        with ThreadPoolExecutor(_PARALLEL_READS) as readers:
            reasons = dict(zip(names, readers.map(self._reason, names), strict=True))
        return {name: reason for name, reason in reasons.items() if reason}

    def _look_at(self, name: str, removed: pa.Array, asked: set[str]) -> ShardLook | str:
        """What the plan needs of a shard, or why it cannot be read."""
        try:
            return look_at(self.shards, name, removed, asked)
        except ShardError as error:
            return str(error)

    def _reason(self, name: str) -> str | None:
        """Why a shard cannot be read."""
        try:
            read_table(self.store, name, ["window"])
        except ShardError as error:
            return str(error)
        return None

    def _gone(self, standing: set[str]) -> dict[str, str]:
        """Shards that were written and do not stand, each with its first video. Where that video stands in another
        shard, a compaction has taken this one's place."""
        written = self._written(standing)
        return {name: written[name] for name in sorted(written) if name not in standing}

    def _written(self, standing: set[str]) -> dict[str, str]:
        """Shards that were noted, each with its first video. standing: the objects of the folder."""
        return {
            name: video_id
            for key in sorted(standing)
            if key.startswith(_WRITTEN)
            for name, video_id in get_json(self.store, key).items()
        }

    def load(self, shard: Json, branches: Sequence[str], dim: int, removed: Sequence[str] = ()) -> LoadedShard:
        """Read a planned shard.

        Args:
            removed: ids of videos to leave out besides the rows that the plan skips.

        Raises:
            ShardError: it is missing or damaged.
        """
        rows = read_table(self.store, shard["name"], ["video_id", "window", "num_frames", "edges_s", *branches])
        if shard["skip"]:
            rows = rows.take(np.setdiff1d(np.arange(len(rows)), shard["skip"]))
        if removed:
            rows = rows.filter(pc.invert(pc.is_in(rows["video_id"], pa.array(removed, pa.string()))))
        offsets = np.concatenate([[0], np.cumsum(rows["num_frames"].to_numpy())])
        try:
            frames = [stacked(rows[branch], np.dtype("<f2"), dim) for branch in branches]
            block = FrameBlock(rows["video_id"].to_pylist(), offsets, frames)
        except ValueError as error:
            raise ShardError(f"{self.store.uri}/{shard['name']} is damaged: {error}") from error
        return LoadedShard(block, rows["window"].to_numpy(), stacked(rows["edges_s"], np.dtype("<f8"), 1).ravel())


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

"""Reads an index: its spec, its live shards and their superseded rows, and each shard as a block of frames.

index/<index>/  spec.json               the run, its student, the feature set and the windowing
                shard-*.parquet         rows of schema.INDEX
                manifest-*.json         the newest one lists the shards to read (`prvr_ray.collection.manifest`)

An index of an earlier version has written-*.json instead of a manifest; `prvr_ray.index.manifest` reads those.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.collection import Collection, ShardFolder, newest_windows, read_spec
from prvr_ray.collection.manifest import Manifest, read_manifest
from prvr_ray.index.manifest import read_without_manifest
from prvr_ray.index.teacher_encoder import TEACHER
from prvr_ray.retrieval.blocks import FrameBlock
from prvr_ray.runs.encoders import check_encoders, identify_encoders
from prvr_ray.runs.run import RunFolder, open_run
from prvr_ray.storage import ShardError, Store, check_name, read_table

Json = dict[str, Any]
_PARALLEL_READS = 16


@dataclass(frozen=True)
class LoadedShard:
    """A shard in memory.

    Attributes:
        block: its windows.
        numbers: each window's number within its video.
        edges_s: the time edges of all windows, one window after another; those of window w begin at first_edge[w].
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
        ValueError: a name that is not that of a single folder.
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
        """Read what the index was made with.

        Raises:
            ValueError: there is no such index.
        """
        try:
            return read_spec(self.store)
        except ValueError as error:
            raise ValueError(f"index {self.name!r}: {error}; `prvr index` makes one") from None

    def run(self) -> RunFolder | None:
        """Open the run whose student made the index; None for an index of the teacher alone.

        Raises:
            ValueError: the run is gone, or its best student is another one now, whose query vectors do not match the
                index.
        """
        spec = self.spec()
        if made_of := spec.get("features_spec"):
            now = self.collection.features(spec["features"]).spec()
            check_encoders(identify_encoders(made_of), now, f"index {self.name!r}", "the collection")
        if spec.get("made_by") == TEACHER:
            return None
        run = open_run(self.collection.store.uri, spec["run"])
        best, made_with = run.best_weights(), {"weights": spec["weights"], "weights_sha256": spec["weights_sha256"]}
        if best != made_with:
            raise ValueError(
                f"index {self.name!r} was made with {_name_weights(made_with)}, the best of run {spec['run']!r} is "
                f"{_name_weights(best)} now: make a new index"
            )
        return run

    def windows(self) -> pa.Table:
        """Return the live row of every window: video_id, added_at, window, `shard` and `row`."""
        return newest_windows(self.shards, self.collection.removed())

    def plan(self) -> tuple[list[Json], list[str]]:
        """List what a job that reads the whole index has to read. With a manifest no shard is opened.

        Returns:
            Per shard a JSON value: its `name`, `bytes`, number of `rows`, and the superseded rows to `skip`. Rows of
            removed videos are not among those; `load` drops them. Second, for an index without a manifest, the shards
            that are missing or unreadable, each with its reason; with a manifest, `load` finds those.
        """
        manifest, missing = self.manifest()
        return self.planned(manifest), missing

    def planned(self, manifest: Manifest) -> list[Json]:
        """Return the shards of a manifest in the form of `plan`."""
        return [
            {"name": name, "bytes": item.num_bytes, "rows": item.num_rows, "skip": item.superseded_rows().tolist()}
            for name, item in manifest.shards.items()
        ]

    def restrict(self, shards: Sequence[Json], video_ids: pa.Array) -> list[Json]:
        """Skip the windows of all other videos; shards of which nothing is left are left out.

        Args:
            shards: of `plan`; only their ids of videos are read.

        Raises:
            ShardError: one is missing or damaged.
        """

        def skip_others(shard: Json) -> Json:
            ids = read_table(self.store, shard["name"], ["video_id"])["video_id"]
            others = np.flatnonzero(~pc.is_in(ids, video_ids).to_numpy())
            return {**shard, "skip": np.union1d(shard["skip"], others).astype(int).tolist()}

        with ThreadPoolExecutor(_PARALLEL_READS) as readers:
            restricted = list(readers.map(skip_others, shards))
        return [shard for shard in restricted if len(shard["skip"]) < shard["rows"]]

    def manifest(self) -> tuple[Manifest, list[str]]:
        """Read the newest manifest; for an index without one, derive it, and list the shards that cannot be read."""
        if manifest := read_manifest(self.store):
            return manifest, []
        return read_without_manifest(self.shards, self.collection.removed())

    def load(self, shard: Json, branches: Sequence[str], dim: int, removed: Sequence[str] = ()) -> LoadedShard:
        """Read a planned shard.

        Args:
            removed: ids of videos to leave out, besides the rows that the plan skips.

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


def _name_weights(best: dict[str, str]) -> str:
    return f"{best['weights']} ({best['weights_sha256'][:12]})"


def stacked(column: pa.ChunkedArray, dtype: np.dtype, dim: int) -> np.ndarray:
    """Stack the vectors of all values of a large_binary column: (rows, dim). A column of one chunk is not copied."""
    parts = [_values(chunk, dtype) for chunk in column.chunks if len(chunk)]
    values = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype), *parts])
    return values.reshape(-1, dim)


def _values(chunk: pa.LargeBinaryArray, dtype: np.dtype) -> np.ndarray:
    _, offsets, data = chunk.buffers()
    first, last = np.frombuffer(offsets, np.int64)[[chunk.offset, chunk.offset + len(chunk)]]
    return np.frombuffer(data, dtype, count=(last - first) // dtype.itemsize, offset=first)

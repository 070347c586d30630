"""A folder of Parquet shards: which shards are live, how their rows are read, and which of several rows is kept.

Rows are only ever added, in shards. Compaction records are honoured here and nowhere else.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection.manifest import newest_manifest, read_manifest
from prvr_ray.storage import Store, get_json, make_shard_name, read_table, table_to_bytes

LISTED = "listed"  # in a cache: the names of the live shards; its other keys are tuples of columns
REPLACED = "replaced-"  # prefix of a compaction record, a JSON list of shard names
_PARALLEL_READS = 16  # a scan reads footers and a few small columns: on object storage it waits, it does not compute


@dataclass(frozen=True)
class ShardFolder:
    """A folder of Parquet shards with one schema. With `names`, exactly those shards: a plan's.

    With `cache`, a dict of one command, each shard is read once, and the folder is listed again only after an `append`
    through such a folder or `Collection.forget_listings`.
    """

    store: Store
    schema: pa.Schema
    names: tuple[str, ...] | None = None
    cache: "dict[Any, Any] | None" = field(default=None, compare=False, repr=False)

    def live(self) -> list[str]:
        """Names of the shards that readers see, sorted: those of the folder's manifest, where it has one."""
        if self.names is not None:
            return list(self.names)
        if self.cache is None:
            return self._list_live()
        if LISTED not in self.cache:
            self.cache[LISTED] = self._list_live()
        return list(self.cache[LISTED])

    def _list_live(self) -> list[str]:
        keys = [item.key for item in self.store.list()]
        if newest_manifest(keys) and (manifest := read_manifest(self.store)):
            return list(manifest.shards)
        return self._not_replaced(keys)

    def present(self) -> list[str]:
        """Names of all shards but those that a compaction replaced, sorted; a killed job's shards are among them."""
        return self._not_replaced([item.key for item in self.store.list()])

    def _not_replaced(self, keys: list[str]) -> list[str]:
        try:
            records = [get_json(self.store, key) for key in keys if key.startswith(REPLACED)]
        except FileNotFoundError:  # gc took a record away, and long before it the shards that it named
            return self.present()
        replaced = {name for record in records for name in record["replaced"]}
        return [key for key in keys if key.endswith(".parquet") and key not in replaced]

    def append(self, table: pa.Table, name: str | None = None) -> str:
        """Put a table as one new shard and return its name.

        Raises:
            ValueError: the table does not have this folder's columns.
        """
        name = name or make_shard_name("shard")
        self.store.put(name, table_to_bytes(table.select(self.schema.names).cast(self.schema)))
        if self.cache is not None:
            self.cache.pop(LISTED, None)
        return name

    def scan(self, columns: list[str] | None = None) -> pa.Table:
        """All rows of the live shards, some columns of them, with `shard` (name) and `row` (within the shard) added."""
        names, cache = self.live(), {} if self.cache is None else self.cache
        wanted = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        known = cache.get(tuple(wanted.names), _located(wanted.empty_table(), ""))
        read = set(known["shard"].unique().to_pylist())
        if not read <= set(names):  # a compaction has replaced some
            known = known.filter(pc.is_in(known["shard"], pa.array(names, pa.large_string())))
        new = [name for name in names if name not in read]
        with ThreadPoolExecutor(_PARALLEL_READS) as readers:
            tables = list(readers.map(lambda name: _located(self._read(name, columns), name), new))
        rows = pa.concat_tables([known, *tables]).combine_chunks()
        cache[tuple(wanted.names)] = rows
        return rows

    def _read(self, name: str, columns: list[str] | None) -> pa.Table:
        rows = read_table(self.store, name, columns)
        return with_columns(rows, self.schema) if columns is None else rows


def newest_windows(folder: ShardFolder, removed: pa.Array) -> pa.Table:
    """The live row of every window of an index: video_id, added_at, window, `shard` and `row`."""
    return live_windows(folder.scan(["video_id", "added_at", "window"]), removed)


def live_windows(rows: pa.Table, removed: pa.Array) -> pa.Table:
    """The live ones of an index's located rows, where `rows` has all rows of each of its videos."""
    rows = of_newest_files(rows, removed)
    return first_of(rows, ["video_id", "window"], [("shard", "ascending"), ("row", "ascending")])


def newer_than(before: float | None, now: float) -> float:
    """`added_at` for a row that supersedes an earlier one: now, or just after that one if its clock was ahead."""
    return now if before is None else max(now, math.nextafter(before, math.inf))


def first_of(rows: pa.Table, keys: list[str], order: list[tuple[str, str]]) -> pa.Table:
    """Keep the first row of every key, after sorting by the keys and then by `order`."""
    ordered = rows.sort_by([*((key, "ascending") for key in keys), *order])
    if not len(ordered):
        return ordered
    is_new = np.zeros(len(ordered), dtype=bool)
    for key in keys:
        codes = ordered[key].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        is_new[1:] |= codes[1:] != codes[:-1]
    is_new[0] = True
    return ordered.filter(pa.array(is_new))


def with_columns(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """A table with all columns of a schema, those that an earlier version did not write being null."""
    absent = [column for column in wanted if column.name not in table.schema.names]
    for column in absent:
        table = table.append_column(column, pa.nulls(len(table), column.type))
    return table.select(wanted.names)


def by_shard(rows: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """Split located rows by their shard: (name, row numbers ascending), in shard order."""
    ordered = rows.select(["shard", "row"]).sort_by([("shard", "ascending"), ("row", "ascending")])
    start = 0
    for item in ordered["shard"].combine_chunks().value_counts().to_pylist():
        yield item["values"], ordered["row"].slice(start, item["counts"]).to_numpy()
        start += item["counts"]


def of_newest_files(rows: pa.Table, removed: pa.Array) -> pa.Table:
    """Of each video that is not removed, the rows that were read from its newest file."""
    rows = rows.filter(pc.invert(pc.is_in(rows["video_id"], removed)))
    newest = rows.group_by("video_id").aggregate([("added_at", "max")])
    return rows.filter(pc.equal(rows["added_at"], looked_up(rows, newest, "added_at_max")))


def looked_up(rows: pa.Table, per_video: pa.Table, column: str) -> pa.ChunkedArray:
    """The value of `column` for each row's video; null where per_video has none."""
    return per_video[column].take(pc.index_in(rows["video_id"], per_video["video_id"].combine_chunks()))


def _located(table: pa.Table, name: str) -> pa.Table:
    # Large: a column of plain strings ends at 2 GiB, which is 42 million names.
    table = table.append_column("shard", pa.repeat(pa.scalar(name, pa.large_string()), len(table)))
    return table.append_column("row", pa.array(np.arange(len(table), dtype=np.int64)))

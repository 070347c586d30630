"""Reads and writes tables as Parquet objects; `ShardError` reports those that cannot be read."""

import time
import uuid

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from prvr_ray.storage.store import Store

MAX_SHARD_BYTES = 256 * 2**20


class ShardError(ValueError):
    """A shard that cannot be read: missing, truncated or not Parquet. The message names it."""


def table_to_bytes(table: pa.Table, *, row_group_rows: int = 65_536) -> pa.Buffer:
    """Serialise a table as Parquet, uncompressed and without dictionaries: vectors do not compress."""
    sink = pa.BufferOutputStream()
    vectors = [name for name in table.schema.names if pa.types.is_large_binary(table.schema.field(name).type)]
    others = [name for name in table.schema.names if name not in vectors]
    pq.write_table(
        table,
        sink,
        compression="NONE",
        use_dictionary=False,
        write_statistics=others,  # minima and maxima of megabyte values would bloat the footer
        row_group_size=row_group_rows,
    )
    return sink.getvalue()


def read_table(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet object, or only some of its columns.

    Raises:
        ShardError: the object is missing, truncated or not Parquet.
        OSError: the store cannot be reached or denies access; the object itself may be fine.
    """
    try:
        try:
            with store.open(key) as file:
                return pq.read_table(file, columns=columns, pre_buffer=True)
        except (pa.ArrowInvalid, OSError):  # Arrow raises the same errors for a failing store and for corrupt bytes
            data = store.get(key)
    except FileNotFoundError:
        raise ShardError(f"{store.uri}/{key} is missing") from None
    try:
        return pq.read_table(pa.BufferReader(data), columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardError(f"{store.uri}/{key} cannot be read: {str(error).splitlines()[0]}") from error


def make_shard_name(kind: str) -> str:
    """Return a unique shard name; names sort by time."""
    return f"{kind}-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"

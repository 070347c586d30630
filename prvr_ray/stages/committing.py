"""The last worker of ingest: rows in, one shard put. It imports little, for any worker process may have to do it."""

import hashlib

import pyarrow as pa

from prvr_ray.collection import ShardFolder

_IDENTITY = ("video_id", "etag", "segment", "window", "error_class", "query_id", "text_hash")
_COUNTED = ("video_id", "is_last", "num_frames", "error_class", "query_id")


def put_shard(rows: pa.Table, folder: ShardFolder, run: str) -> pa.Table:
    """Put rows as one shard, the commit, and give back its small columns.

    Args:
        run: of this run alone. With the rows' identity it names the shard, so that a repeated task puts it again under
            the same name.
    """
    identity = rows.select([name for name in _IDENTITY if name in rows.schema.names])
    digest = hashlib.sha256(repr(identity.to_pylist()).encode()).hexdigest()[:16]
    folder.append(rows, f"{run}-{digest}.parquet")
    return rows.select([name for name in _COUNTED if name in rows.schema.names])

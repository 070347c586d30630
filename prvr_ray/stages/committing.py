"""Rows in, one shard put: ingest's last worker, and the last step of an indexing one. No Ray here."""

import hashlib

import pyarrow as pa

from prvr_ray.collection import ShardFolder
from prvr_ray.storage import not_shared

_IDENTITY = ("video_id", "etag", "segment", "window", "error_class", "query_id", "text_hash")
_COUNTED = ("video_id", "is_last", "num_frames", "error_class", "query_id")


class PutShard:
    """Puts rows as one shard, the commit, and gives back its small columns for `check_put`."""

    def __init__(self, folder: ShardFolder, run: str):
        """
        Args:
            run: of this run alone. With the rows' identity it names the shard, so that a repeated task puts it again
                under the same name.
        """
        self._folder, self._run = folder, run
        self._not_shared = not_shared(folder.store)  # before anything is put, which makes folders

    def __call__(self, rows: pa.Table) -> pa.Table:
        identity = rows.select([name for name in _IDENTITY if name in rows.schema.names])
        digest = hashlib.sha256(repr(identity.to_pylist()).encode()).hexdigest()[:16]
        problem = self._not_shared or self._put(rows, f"{self._run}-{digest}.parquet")
        counted = rows.select([name for name in _COUNTED if name in rows.schema.names])
        return counted.append_column("problem", pa.repeat(pa.scalar(problem, pa.string()), len(rows)))

    def _put(self, rows: pa.Table, name: str) -> str | None:
        """Why it could not be put: given back as a value; raised, Ray would make a page of it."""
        try:
            self._folder.append(rows, name)
        except OSError as error:
            return str(error)
        return None


def check_put(acknowledged: pa.Table) -> None:
    """Raise what kept a shard from being put: no space, no permission, a server that stays busy.

    Raises:
        OSError: these rows do not stand; the next run does them again.
    """
    problems = acknowledged["problem"].drop_null()
    if len(problems):
        raise OSError(problems[0].as_py())

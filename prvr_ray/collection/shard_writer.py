"""Puts rows as a shard: the last worker of an ingest, and the last step of an index job. No Ray here."""

import hashlib
from collections.abc import Callable

import pyarrow as pa

from prvr_ray.collection import ShardFolder
from prvr_ray.storage import find_sharing_problem
from prvr_ray.worker_errors import raise_told, tell

_IDENTITY = ("video_id", "etag", "segment", "window", "error_class", "query_id", "text_hash")
_COUNTED = ("video_id", "is_last", "num_frames", "error_class", "query_id")


class PutShard:
    """Puts rows as one shard, which commits them, and returns its small columns for `raise_put_errors`."""

    def __init__(self, folder: ShardFolder, run: str, before_first: Callable[[], object] | None = None):
        """
        Args:
            run: of this run alone. With the rows' identity it names the shard, so that a repeated task puts it again
                under the same name.
            before_first: called before this worker's first shard is put, such as to declare the spec; its ValueError
                or OSError is reported like a failed put.
        """
        self._folder, self._run, self._before_first = folder, run, before_first
        self._not_shared = find_sharing_problem(folder.store)  # before anything is put, which makes folders

    def __call__(self, rows: pa.Table) -> pa.Table:
        identity = rows.select([name for name in _IDENTITY if name in rows.schema.names])
        digest = hashlib.sha256(repr(identity.to_pylist()).encode()).hexdigest()[:16]
        problem = tell(self._put, rows, f"{self._run}-{digest}.parquet")
        counted = rows.select([name for name in _COUNTED if name in rows.schema.names])
        return counted.append_column("problem", pa.repeat(pa.scalar(problem, pa.string()), len(rows)))

    def _put(self, rows: pa.Table, name: str) -> None:
        if self._not_shared:
            raise OSError(self._not_shared)
        if self._before_first:
            self._before_first()
            self._before_first = None
        self._folder.append(rows, name)


def raise_put_errors(acknowledged: pa.Table) -> None:
    """Raise the error that kept a shard from being put: no space, no permission, a server that stays busy.

    Raises:
        OSError, ValueError: these rows were not put; the next run repeats them.
    """
    problems = acknowledged["problem"].drop_null()
    if len(problems):
        raise_told(problems[0].as_py())

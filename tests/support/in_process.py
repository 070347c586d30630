"""The part of Ray Data that `ingest` and `index` use, in this process: their workers are called one after the other.

What only Ray can break (workers that cannot be sent, pools that do not fit, blocks that do not travel) has a test
through Ray for each stage; everything else is a fact about the workers and the rows.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa


class LocalDataset:
    """Tables that flow through workers as through `ray.data.Dataset.map_batches`."""

    def __init__(self, tables: Iterable[pa.Table]):
        self._tables = tables

    def map_batches(
        self,
        worker: Callable[..., Any],
        *,
        batch_size: int | None,
        fn_constructor_args: tuple[Any, ...] = (),
        **resources: Any,
    ) -> "LocalDataset":
        assert resources.pop("batch_format") == "pyarrow"
        assert "compute" in resources  # without it, Ray would take a function of its own kind of worker
        return LocalDataset(_mapped(worker(*fn_constructor_args), batches_of(self._tables, batch_size)))

    def iter_batches(self, *, batch_format: str, batch_size: int | None = None) -> Iterator[pa.Table]:
        assert batch_format == "pyarrow"
        yield from batches_of(self._tables, batch_size)


def local_dataset_of(tasks: list[pa.Table], block_bytes: int) -> LocalDataset:
    """Stands for `prvr_ray.stages.datasets.make_dataset`."""
    assert block_bytes > 0
    return LocalDataset(tasks)


def batches_of(tables: Iterable[pa.Table], size: int | None) -> Iterator[pa.Table]:
    """The same rows in tables of `size` rows, the last one perhaps shorter; None: as they come."""
    waiting: pa.Table | None = None
    for table in tables:
        if size is None:
            yield table
            continue
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while len(waiting) >= size:
            yield waiting.slice(0, size)
            waiting = waiting.slice(size)
    if waiting is not None and len(waiting):
        yield waiting


def _mapped(worker: Any, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    for batch in batches:
        given = worker(batch)
        yield from [given] if isinstance(given, pa.Table) else given

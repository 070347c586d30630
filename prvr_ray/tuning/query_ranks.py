"""What a run of a confirmation or an ablation keeps of every query, so that intervals can resample videos too.

The run's folder holds `ranks-<split>.parquet`: query_id; video_id, the first of its relevant videos; ranks, the sorted
ranks of all its relevant videos under the fused score.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prvr_ray.retrieval.metrics import summarize
from prvr_ray.storage import Store, read_table, table_to_bytes


@dataclass(frozen=True)
class QuerySumr:
    """Each query's own SumR, whose mean is the split's. Q queries, in the order of their ids."""

    query_ids: list[str]
    video_ids: list[str]
    sumr_Q: np.ndarray


def put_ranks(
    store: Store, split: str, query_ids: Sequence[str], video_ids: Sequence[str], ranks: Sequence[np.ndarray]
) -> None:
    """Keep the ranks of a split beside a run."""
    rows = {"query_id": list(query_ids), "video_id": list(video_ids), "ranks": [ranks_q.tolist() for ranks_q in ranks]}
    store.put(f"ranks-{split}.parquet", table_to_bytes(pa.table(rows)))


def read_sumr(store: Store, split: str) -> QuerySumr | None:
    """What `put_ranks` kept; None in runs of earlier versions."""
    try:
        rows = read_table(store, f"ranks-{split}.parquet").sort_by("query_id")
    except ValueError:  # a ShardError: missing
        return None
    sumr = [summarize([np.array(ranks_q)])["sumr"] for ranks_q in rows["ranks"].to_pylist()]
    return QuerySumr(rows["query_id"].to_pylist(), rows["video_id"].to_pylist(), np.array(sumr))


def read_queries_in(store: Store) -> Callable[[str, str], QuerySumr | None]:
    """A reader of the runs in a folder: name and split -> `read_sumr`, each read once."""

    @functools.cache
    def read(run: str, split: str) -> QuerySumr | None:
        return read_sumr(store.child(run), split)

    return read

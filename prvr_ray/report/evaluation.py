"""The ranks that `prvr evaluate` saved for a run, query by query, and confidence intervals from them.

Shapes: Q queries, M metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import pyarrow.compute as pc

from prvr_ray.collection import Collection
from prvr_ray.config import EvaluateSettings
from prvr_ray.evaluation.intervals import bootstrap
from prvr_ray.report.wording import signed
from prvr_ray.retrieval.metrics import summarize
from prvr_ray.storage import get_json, read_table

ROWS = ("teacher", "inheritance", "exploration", "fused", "teacher+student", "chosen", "chosen+hubness")
MEANS = ("r1", "r5", "r10", "r100", "sumr", "meanr", "map")  # means over queries, which a bootstrap can resample
SUMR = MEANS.index("sumr")


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are computed; see `prvr_ray.evaluation.intervals.bootstrap`."""

    num_resamples: int
    confidence: float
    seed: int

    def intervals(self, values_QM: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
        """Compute the (2, M) lower and upper ends of the means."""
        return bootstrap(
            values_QM, clusters, num_resamples=self.num_resamples, confidence=self.confidence, seed=self.seed
        )


@dataclass(frozen=True)
class Evaluation:
    """What `prvr evaluate` saved for one run on one split.

    ranks: row -> per query, the ranks of its relevant videos. ratios: (Q,) moment-to-video ratio, NaN for none.
    clusters: per query, its first relevant video. weights: branch weights in the fused score. moments: R@1 at each
    IoU threshold, percent. ratio_edges: boundaries between the groups by ratio.
    """

    run: str
    split: str
    protocol: str
    query_ids: list[str]
    clusters: list[str]
    ratios: np.ndarray
    ranks: dict[str, list[np.ndarray]]
    weights: dict[str, float] = field(default_factory=dict)
    moments: dict[str, float] = field(default_factory=dict)
    ratio_edges: list[float] = field(default_factory=lambda: EvaluateSettings().ratio_edges)

    def intervals(self, how: Bootstrap) -> dict[str, np.ndarray]:
        """Compute row -> (2, M) lower and upper ends of its figures, in the order of MEANS."""
        ends = how.intervals(np.hstack(list(self.values_QM.values())), self.clusters)
        return dict(zip(self.values_QM, np.split(ends, len(self.values_QM), axis=1), strict=True))

    @property
    def first_ranks(self) -> dict[str, int]:
        """query_id -> the fused rank of its best relevant video."""
        return {
            query_id: int(ranks_q[0]) for query_id, ranks_q in zip(self.query_ids, self.ranks["fused"], strict=True)
        }

    @cached_property
    def values_QM(self) -> dict[str, np.ndarray]:
        """Row -> (Q, M) R@1 and so on of each query, in the order of MEANS; their means are the row's figures."""
        return {
            row: np.array([_recalls(tuple(ranks_q.tolist())) for ranks_q in ranks]) for row, ranks in self.ranks.items()
        }


def read_evaluation(collection: Collection, run: str, split: str, protocol: str) -> Evaluation | None:
    """Read the ranks that `prvr evaluate` saved; None if there are none."""
    store = collection.store.child(f"runs/{run}/evaluations")
    try:
        summary = get_json(store, f"{split}-{protocol}.json")
    except FileNotFoundError:
        return None
    rows = read_table(store, f"{split}-{protocol}.parquet")
    relevant = collection.queries(split)
    first_video = dict(
        zip(relevant["query_id"].to_pylist(), (ids[0] for ids in relevant["video_ids"].to_pylist()), strict=True)
    )
    parts = {row: rows.filter(pc.equal(rows["row"], row)).sort_by("query_id") for row in ROWS}
    parts = {row: part for row, part in parts.items() if len(part)}
    one = next(iter(parts.values()))
    query_ids = one["query_id"].to_pylist()
    return Evaluation(
        run,
        split,
        protocol,
        query_ids,
        [first_video[query_id] for query_id in query_ids],
        one["moment_ratio"].to_numpy(zero_copy_only=False).astype(float),
        {row: [np.array(ranks) for ranks in part["ranks"].to_pylist()] for row, part in parts.items()},
        summary["weights"],
        summary["moments"],
        summary.get("ratio_edges", EvaluateSettings().ratio_edges),  # evaluations by earlier versions lack it
    )


@dataclass(frozen=True)
class Gap:
    """The difference in SumR between two rows, with its interval."""

    above: str
    below: str
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        figures = f"{signed(self.mean)} SumR, between {signed(self.low)} and {signed(self.high)}"
        if self.low > 0:
            return f"{self.above} is above {self.below}: {figures}"
        if self.high < 0:
            return f"{self.above} is below {self.below}: {figures}"
        return f"{self.above} and {self.below} cannot be told apart here: {figures}"


def gap(first: Evaluation, second: Evaluation, rows: tuple[str, str], names: tuple[str, str], how: Bootstrap) -> Gap:
    """Compute the paired difference in SumR between rows of two evaluations, over their common queries."""
    place = {query_id: index for index, query_id in enumerate(second.query_ids)}
    common = [index for index, query_id in enumerate(first.query_ids) if query_id in place]
    others = [place[first.query_ids[index]] for index in common]
    values_Q = first.values_QM[rows[0]][common, SUMR] - second.values_QM[rows[1]][others, SUMR]
    low, high = how.intervals(values_Q[:, None], [first.clusters[index] for index in common])[:, 0]
    return Gap(*names, float(values_Q.mean()), float(low), float(high))


@lru_cache(maxsize=100_000)  # many queries have the same ranks
def _recalls(ranks_q: tuple[int, ...]) -> list[float]:
    summary = summarize([np.array(ranks_q)])
    return [summary[name] for name in MEANS]

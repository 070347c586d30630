"""Finds the answers that the page shows, with the score of every frame: from an index, by the run's own student.

Shapes: Q queries, P pairs of a query and a window, F frames.
"""

from collections.abc import Collection as Ids
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import Collection, by_shard
from prvr_ray.retrieval.moments import fused_curves, locate
from prvr_ray.retrieval.scoring import TopK, search
from prvr_ray.runs import RunFolder
from prvr_ray.stages.index_folder import IndexFolder, LoadedShard
from prvr_ray.stages.student_vectors import encode_queries

Queries = list[tuple[float, np.ndarray]]  # per branch, its weight and (Q, D) unit rows


@dataclass(frozen=True)
class Found:
    """One video in answer to a query, by its best window.

    edges_s: (F + 1) time edges of the window's frames; NaN where the features have no times. curve_F: their scores.
    """

    video_id: str
    score: float
    edges_s: np.ndarray
    curve_F: np.ndarray
    peak_s: float
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Lookup:
    """An index restricted to some videos, and the weights of its branches."""

    index: IndexFolder
    shards: list[dict[str, Any]]
    weights: dict[str, float]
    dim: int
    moment_threshold: float

    def best(self, queries: Queries, k: int) -> list[list[Found]]:
        """The k best videos of each query, best first."""
        top = search(queries, (shard.block for shard in self._load()), k)
        return [list(found.values()) for found in self._with_curves(queries, top)]

    def only(self, video_ids: Ids[str]) -> "Lookup":
        """This index with no other videos than these."""
        return Lookup(
            self.index, _restrict(self.index, self.shards, video_ids), self.weights, self.dim, self.moment_threshold
        )

    def _load(self) -> Iterator[LoadedShard]:
        return (self.index.load(shard, list(self.weights), self.dim) for shard in self.shards)

    def _with_curves(self, queries: Queries, top: TopK) -> list[dict[int, Found]]:
        """Per query, place -> answer; the shards are read again, for only now the winning windows are known."""
        found: list[dict[int, Found]] = [{} for _ in top.video_ids]
        first = 0
        for shard in self._load():
            last = first + len(shard.block.video_ids)
            query_P, place_P = np.nonzero((top.windows >= first) & (top.windows < last))
            window_P = top.windows[query_P, place_P] - first
            first = last
            if not len(query_P):
                continue
            curve_PF = fused_curves(queries, shard.block, query_P, window_P)
            first_P, lengths_P = shard.first_edge[window_P], (~np.isneginf(curve_PF)).sum(1)
            moments = locate(curve_PF, shard.edges_s, first_P, self.moment_threshold)
            for pair, (query, place) in enumerate(zip(query_P.tolist(), place_P.tolist(), strict=True)):
                found[query][place] = Found(
                    top.video_ids[query][place],
                    float(top.scores[query, place]),
                    shard.edges_s[first_P[pair] :][: lengths_P[pair] + 1],
                    curve_PF[pair, : lengths_P[pair]],
                    *(float(times_P[pair]) for times_P in (moments.peak_s, moments.start_s, moments.end_s)),
                )
        return [dict(sorted(answers.items())) for answers in found]


def open_lookup(
    collection: Collection, index: str, run: RunFolder, video_ids: Ids[str], moment_threshold: float
) -> Lookup:
    """Open an index for searches among some videos.

    Raises:
        ValueError: there is no such index.
    """
    folder = IndexFolder(collection, index)
    spec = folder.spec()
    student = run.config().student
    of_branch = {"inheritance": student.inheritance_weight, "exploration": student.exploration_weight}
    weights = {branch: of_branch[branch] for branch in spec["branches"]}
    shards, _ = folder.plan()
    return Lookup(folder, _restrict(folder, shards, video_ids), weights, spec["dim"], moment_threshold)


def embed(collection: Collection, run: RunFolder, lookup: Lookup, query_ids: Sequence[str]) -> Queries:
    """The vectors of some queries, in their order, by the run's student."""
    feature_set = collection.features(lookup.index.spec()["features"])
    rows = feature_set.queries()
    wanted = rows.filter(pc.is_in(rows["query_id"], pa.array(query_ids)))
    tokens = {query.query_id: query.tokens for query in feature_set.read_queries(wanted)}
    encoded = encode_queries(run.load_student(), [tokens[query_id] for query_id in query_ids])
    return [(weight, encoded[branch]) for branch, weight in lookup.weights.items()]


def _restrict(index: IndexFolder, shards: list[dict[str, Any]], video_ids: Ids[str]) -> list[dict[str, Any]]:
    """The shards that hold some of the videos, skipping the rows of all others."""
    windows = index.windows()
    kept = dict(by_shard(windows.filter(pc.is_in(windows["video_id"], pa.array(video_ids, pa.string())))))
    return [
        shard | {"skip": np.setdiff1d(np.arange(shard["rows"]), kept[shard["name"]]).tolist()}
        for shard in shards
        if shard["name"] in kept
    ]

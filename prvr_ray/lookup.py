"""Answers to a few queries in this process, with the score of every frame: from an index, by its run's own student.

For many queries there is `prvr score`. Shapes: Q queries, P pairs of a query and a window, F frames.
"""

from collections.abc import Collection as Ids
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import Collection, FeatureSet, by_shard
from prvr_ray.retrieval.moments import branch_curves, fuse_curves, locate
from prvr_ray.retrieval.scoring import TopK, search
from prvr_ray.runs import RunFolder
from prvr_ray.stages.index_folder import IndexFolder, LoadedShard
from prvr_ray.stages.student_vectors import encode_queries
from prvr_ray.student.model import Student

Queries = list[tuple[float, np.ndarray]]  # per branch, its weight and (Q, D) unit rows


@dataclass(frozen=True)
class Found:
    """One video in answer to a query, by its best window.

    score: fused cosine. peak_s, start_s, end_s: the best frame and the moment around it, seconds since the start of
    the stream. edges_s: (F + 1) time edges of the window's frames; all times are NaN where the features have none.
    curve_F: the frames' fused scores.
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
    """An index, or a part of it, and the run whose student made it."""

    index: IndexFolder
    run: RunFolder
    shards: list[dict[str, Any]]
    moment_threshold: float

    @cached_property
    def spec(self) -> dict[str, Any]:
        return self.index.spec()

    @cached_property
    def features(self) -> FeatureSet:
        """The feature set that was indexed."""
        return self.index.collection.features(self.spec["features"])

    @cached_property
    def student(self) -> Student:
        return self.run.load_student(self.spec)

    def only(self, video_ids: Ids[str]) -> "Lookup":
        """This index with no other videos than these."""
        windows = self.index.windows()
        kept = dict(by_shard(windows.filter(pc.is_in(windows["video_id"], pa.array(video_ids, pa.string())))))
        shards = [
            shard | {"skip": np.setdiff1d(np.arange(shard["rows"]), kept[shard["name"]]).tolist()}
            for shard in self.shards
            if shard["name"] in kept
        ]
        return replace(self, shards=shards)

    def embed(self, tokens: Sequence[np.ndarray], weights: dict[str, float] | None = None) -> Queries:
        """The vectors of queries, each given as (T, D) token states.

        Args:
            weights: of the branches; None: the run's.
        """
        settings = self.run.config().student
        weights = weights or {"inheritance": settings.inheritance_weight, "exploration": settings.exploration_weight}
        return [(weights[branch], rows_QD) for branch, rows_QD in encode_queries(self.student, tokens).items()]

    def stored_tokens(self, query_ids: Sequence[str]) -> list[np.ndarray]:
        """The token states of the collection's own queries, in the order of their ids."""
        rows = self.features.queries()
        wanted = rows.filter(pc.is_in(rows["query_id"], pa.array(query_ids, pa.string())))
        tokens = {query.query_id: query.tokens for query in self.features.read_queries(wanted)}
        return [tokens[query_id] for query_id in query_ids]

    def best(self, queries: Queries, k: int) -> list[list[Found]]:
        """The k best videos of each query, best first."""
        top = search(queries, (shard.block for shard in self._load()), k)
        return [list(found.values()) for found in self._with_curves(queries, top)]

    def _load(self) -> Iterator[LoadedShard]:
        return (self.index.load(shard, self.spec["branches"], self.spec["dim"]) for shard in self.shards)

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
            curves = branch_curves([rows_QD for _, rows_QD in queries], shard.block, query_P, window_P)
            curve_PF = fuse_curves([weight for weight, _ in queries], curves)
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


def open_lookup(collection: Collection, index: str, moment_threshold: float = 0.5) -> Lookup:
    """Open an index for a few searches.

    Args:
        moment_threshold: as `score.moment_threshold`.

    Raises:
        ValueError: there is no such index; shards of it are lost, so that answers would lack videos; or its run has
            gone on since, so that queries would be encoded by another student than videos.
    """
    folder = IndexFolder(collection, index)
    shards, missing = folder.plan()
    if missing:
        advice = "Delete what is damaged and index again: `prvr index` puts what is missing"
        raise ValueError(f"{'; '.join(missing)}. {advice}")
    return Lookup(folder, folder.run(), shards, moment_threshold)

"""Answers a few queries from an index in this process, with the score of every frame.

The student of the index's run encodes the queries, or the teacher if the index holds the teacher's vectors. For many
queries use `prvr score`. Shapes: Q queries, P pairs of a query and a window, F frames.
"""

from collections.abc import Collection as Ids
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import Collection, FeatureSet, QueryFeatures
from prvr_ray.collection.filters import matching_videos
from prvr_ray.encoders import Encoder
from prvr_ray.index.index import IndexFolder, LoadedShard
from prvr_ray.index.student_encoder import encode_queries
from prvr_ray.index.teacher_encoder import unit_rows
from prvr_ray.retrieval.moments import find_moments
from prvr_ray.retrieval.scoring import TopK, search
from prvr_ray.runs.run import RunFolder
from prvr_ray.scores.query_encoder import encode_pooled, encode_texts, text_encoder_name
from prvr_ray.storage import ShardError
from prvr_ray.student.model import Student

_ADVICE = "Delete what is damaged and index again: `prvr index` puts what is missing"

Queries = list[tuple[float, np.ndarray]]  # per branch, its weight and (Q, D) unit rows


@dataclass(frozen=True)
class Found:
    """One video in answer to a query, by its best window.

    score: fused cosine. peak_s, start_s, end_s: the best frame and the moment around it, in a player's seconds.
    edges_s: (F + 1) time edges of the window's frames; all times are NaN where the features have none.
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
    """An index, or a part of it, and the run whose student made it; None: the teacher made it.

    num_videos: of the index, at most. removed: ids of removed videos, which no answer may name.
    """

    index: IndexFolder
    run: RunFolder | None
    shards: list[dict[str, Any]]
    moment_threshold: float
    num_videos: int
    removed: tuple[str, ...] = ()

    @cached_property
    def spec(self) -> dict[str, Any]:
        return self.index.spec()

    @cached_property
    def features(self) -> FeatureSet:
        """The feature set that was indexed."""
        return self.index.collection.features(self.spec["features"])

    @cached_property
    def student(self) -> Student | None:
        return self.run.load_student(self.spec) if self.run else None

    @property
    def text_encoder(self) -> str:
        """Name of the encoder that new text needs. Raises ValueError where there is none, as `text_encoder_name`."""
        return self.find_text_encoder()

    def find_text_encoder(self, override: str = "") -> str:
        """`text_encoder`, where the user says that it lies."""
        return text_encoder_name(self.features, "student" if self.run else "teacher", override)

    def only(self, video_ids: Ids[str]) -> "Lookup":
        """This index with no other videos than these."""
        return replace(self, shards=self.index.restrict(self.shards, pa.array(video_ids, pa.string())))

    def embed_texts(self, encoder: Encoder, texts: list[str]) -> Queries:
        """Encode texts that are not in the collection. encoder: the one that `text_encoder` names."""
        if self.student is None:
            return [(1.0, rows_QD) for rows_QD in encode_pooled(encoder, texts).values()]
        return self._embed_tokens(self.student, encode_texts(encoder, texts), None)

    def embed_stored(self, query_ids: Sequence[str], weights: dict[str, float] | None = None) -> Queries:
        """Return the vectors of queries of the collection, in the order of query_ids.

        Args:
            weights: of the student's branches; None: the run's.

        Raises:
            ValueError: one that is not encoded, or whose text has changed since.
        """
        queries = self._stored(query_ids)
        if self.student is None:
            return [(1.0, unit_rows([query.teacher for query in queries]))]
        return self._embed_tokens(self.student, [query.tokens for query in queries], weights)

    def _embed_tokens(
        self, student: Student, tokens: Sequence[np.ndarray], weights: dict[str, float] | None
    ) -> Queries:
        assert self.run
        settings = self.run.config().student
        weights = weights or {"inheritance": settings.inheritance_weight, "exploration": settings.exploration_weight}
        vectors = encode_queries(student, tokens, keep_last=self.features.has_causal_text)
        return [(weights[branch], rows_QD) for branch, rows_QD in vectors.items()]

    def _stored(self, query_ids: Sequence[str]) -> list[QueryFeatures]:
        known = self.index.collection.queries().select(["query_id", "text"])
        wanted = known.filter(pc.is_in(known["query_id"], pa.array(query_ids, pa.string())))
        rows = self.features.match_queries(wanted).rows
        found = {query.query_id: query for query in self.features.read_queries(rows)}
        if absent := [query_id for query_id in query_ids if query_id not in found]:
            raise ValueError(f"query {absent[0]!r} has no features of its present text: run `prvr ingest`")
        return [found[query_id] for query_id in query_ids]

    def best(self, queries: Queries, k: int) -> list[list[Found]]:
        """Return the k best videos of each query, best first; memory is bounded by the number of videos, not by k."""
        top = search(queries, (shard.block for shard in self._load()), min(k, self.num_videos) if k > 0 else k)
        return [list(found.values()) for found in self._with_curves(queries, top)]

    def _load(self) -> Iterator[LoadedShard]:
        """Read the shards one after another.

        Raises:
            ValueError: one is missing or damaged; the message says what to do.
        """
        for shard in self.shards:
            try:
                yield self.index.load(shard, self.spec["branches"], self.spec["dim"], self.removed)
            except ShardError as error:
                raise ValueError(f"{error}. {_ADVICE}") from None

    def _with_curves(self, queries: Queries, top: TopK) -> list[dict[int, Found]]:
        """Return, per query, rank -> answer. Shards are read again, since the winning windows are only known now."""
        found: list[dict[int, Found]] = [{} for _ in top.video_ids]
        first = 0
        for shard in self._load():
            last = first + len(shard.block.video_ids)
            query_P, place_P = np.nonzero((top.windows >= first) & (top.windows < last))
            window_P = top.windows[query_P, place_P] - first
            first = last
            if not len(query_P):
                continue
            moments = find_moments(queries, shard.block, shard.edges_s, query_P, window_P, self.moment_threshold)
            first_P, lengths_P = shard.first_edge[window_P], (~np.isneginf(moments.curve_PF)).sum(1)
            for pair, (query, place) in enumerate(zip(query_P.tolist(), place_P.tolist(), strict=True)):
                found[query][place] = Found(
                    top.video_ids[query][place],
                    float(top.scores[query, place]),
                    shard.edges_s[first_P[pair] :][: lengths_P[pair] + 1],
                    moments.curve_PF[pair, : lengths_P[pair]],
                    *(float(times_P[pair]) for times_P in (moments.peak_s, moments.start_s, moments.end_s)),
                )
        return [dict(sorted(answers.items())) for answers in found]


def open_lookup(
    collection: Collection, index: str, moment_threshold: float = 0.5, filters: Sequence[str] = ()
) -> Lookup:
    """Open an index for a few searches.

    Args:
        moment_threshold: as `score.moment_threshold`.
        filters: search only videos that match all of these (`prvr_ray.collection.filters`).

    Raises:
        ValueError: an unusable filter; there is no such index; shards of it are missing, so answers would lack videos
            (with a manifest the search finds that); or its run has trained on since, so another student would encode
            the queries.
    """
    folder = IndexFolder(collection, index)
    removed = tuple(collection.removed().to_pylist())
    manifest, missing = folder.manifest()
    if missing:
        raise ValueError(f"{'; '.join(missing)}. {_ADVICE}")
    num_videos = max(1, manifest.num_videos)
    lookup = Lookup(folder, folder.run(), folder.planned(manifest), moment_threshold, num_videos, removed)
    return lookup.only(matching_videos(collection.videos(), filters).to_pylist()) if filters else lookup

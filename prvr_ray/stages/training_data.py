"""From a collection to what training reads: the plan, the videos and queries of a split, and the node-local caches.

What cannot be used is left out here, counted and named, before a training starts; a split of which nothing is left is
an error. This module reads tables and feature shards; sampling and alignment are `student.batching`'s.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import FeatureSet, existing_collection
from prvr_ray.config import Config
from prvr_ray.student.batching import align, normalize, sample_uniform
from prvr_ray.student.cache import FeatureCache, QueryRows, VideoRows, open_cache, write_cache
from prvr_ray.student.noise import degrade_teacher

NAMED = 5  # of left-out items, this many are named


@dataclass(frozen=True)
class Selection:
    """The usable part of a split.

    segments: rows of `FeatureSet.complete` of its videos. queries: rows of `FeatureSet.queries`.
    relevant: query_id -> its usable videos. left_out: reason -> ids.
    """

    segments: pa.Table
    queries: pa.Table
    relevant: dict[str, list[str]]
    left_out: dict[str, list[str]]

    @property
    def num_videos(self) -> int:
        """Distinct videos."""
        return pc.count_distinct(self.segments["video_id"]).as_py()

    def report(self) -> dict[str, Any]:
        """Counts, and the first ids of what was left out."""
        left_out = {reason: f"{len(ids)}: {', '.join(ids[:NAMED])}" for reason, ids in self.left_out.items() if ids}
        return {"videos": self.num_videos, "queries": len(self.queries), **({"left_out": left_out} if left_out else {})}


@dataclass(frozen=True)
class TrainingData:
    """A root's features as a plan pins them. A small value that travels to workers."""

    root: str
    plan: dict[str, Any]

    @classmethod
    def of(cls, root: str, features: str) -> "TrainingData":
        """Everything that stands now.

        Raises:
            ValueError: there is no such root or feature set.
        """
        collection = existing_collection(root)
        feature_set = collection.features(features)
        feature_set.spec()
        of_features = {f"features/{features}/{name}": names for name, names in feature_set.plan().items()}
        return cls(collection.store.uri, {"features": features, "shards": {**collection.plan(), **of_features}})

    def pinned(self, plan: dict[str, Any], where: str) -> "TrainingData":
        """The same data as the first call for `where` pinned it.

        Raises:
            ValueError: that call read another feature set.
        """
        if plan["features"] != self.plan["features"]:
            raise ValueError(
                f"{where} reads the feature set {plan['features']!r}, not {self.plan['features']!r}. Give another name"
            )
        return TrainingData(self.root, plan)

    def feature_set(self) -> FeatureSet:
        """The feature set, reading the plan's shards."""
        features, shards = self.plan["features"], self.plan["shards"]
        collection = existing_collection(self.root).pinned(shards)
        names = {name: shards[f"features/{features}/{name}"] for name in ("videos", "queries")}
        return collection.features(features).pinned(names)

    def select(self, split: str, only_captioned: bool) -> Selection:
        """The usable videos and queries of a split.

        Args:
            only_captioned: leave out videos without a usable query: for training they say nothing, for validation
                they are distractors.

        Raises:
            ValueError: nothing is left.
        """
        feature_set = self.feature_set()
        complete = feature_set.complete()
        complete = complete.filter(pc.greater(complete["num_frames"], 0))
        ready = set(complete["video_id"].unique().to_pylist())
        encoded = feature_set.queries()
        has_vectors = set(encoded["query_id"].to_pylist())
        wanted = feature_set.collection.queries(split).select(["query_id", "video_ids"]).to_pylist()
        videos = feature_set.collection.videos()
        in_split = set(videos.filter(pc.equal(videos["split"], split))["video_id"].to_pylist())

        relevant = {row["query_id"]: [v for v in row["video_ids"] or [] if v in ready] for row in wanted}
        usable = {query: found for query, found in relevant.items() if found and query in has_vectors}
        captioned = {video for found in usable.values() for video in found}
        chosen = captioned if only_captioned else captioned | (in_split & ready)
        selection = Selection(
            complete.filter(pc.is_in(complete["video_id"], pa.array(sorted(chosen), pa.string()))),
            encoded.filter(pc.is_in(encoded["query_id"], pa.array(sorted(usable), pa.string()))),
            usable,
            {
                "queries whose videos have no features": sorted(q for q, found in relevant.items() if not found),
                "queries without features": sorted(q for q, found in relevant.items() if found and q not in usable),
                "videos without features": sorted(in_split - ready),
                "videos without captions": sorted(in_split & ready - captioned) if only_captioned else [],
            },
        )
        if not usable:
            raise ValueError(_nothing(split, selection, feature_set))
        return selection

    def open_caches(self, config: Config) -> tuple[FeatureCache, FeatureCache]:
        """The caches of the training and the validation split on this node, filled if they are not there."""
        train, validation = config.train.train_split, config.train.validation_split
        caches = self._open(config, train, is_training=True), self._open(config, validation, is_training=False)
        noise = config.train.teacher_noise
        return degrade_teacher(caches[0], noise), degrade_teacher(caches[1], noise)

    def open_cache(self, config: Config, split: str) -> FeatureCache:
        """The cache of a split to evaluate on, on this node, filled if it is not there."""
        return degrade_teacher(self._open(config, split, is_training=False), config.train.teacher_noise)

    def _open(self, config: Config, split: str, is_training: bool) -> FeatureCache:
        def fill(folder: Path) -> None:
            feature_set, chosen = self.feature_set(), self.select(split, only_captioned=is_training)
            write_cache(
                folder,
                _video_rows(feature_set, chosen, config, is_training),
                _query_rows(feature_set, chosen, config.student.max_tokens),
            )

        return open_cache(_caches(config) / f"{split}-{self._digest(config, split, is_training)}", fill)

    def _digest(self, config: Config, split: str, is_training: bool) -> str:
        """Of everything that decides a cache's content; removals since the plan included."""
        student, faithful = config.student, config.train.faithful_alignment
        removed = self.feature_set().collection.removed().to_pylist()
        values = [self.root, self.plan, split, is_training, student.max_frames, student.max_tokens, faithful, removed]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def _video_rows(feature_set: FeatureSet, chosen: Selection, config: Config, is_training: bool) -> Iterator[VideoRows]:
    limit = config.student.max_frames
    for video in feature_set.read_videos(chosen.segments):
        if is_training:
            frames, teacher_frames = align(video.student, video.teacher, limit, config.train.faithful_alignment)
        else:  # the teacher is judged on all its frames
            frames, teacher_frames = normalize(sample_uniform(video.student, limit)), video.teacher
        yield VideoRows(video.video_id, frames, teacher_frames)


def _query_rows(feature_set: FeatureSet, chosen: Selection, max_tokens: int) -> Iterator[QueryRows]:
    for query in feature_set.read_queries(chosen.queries):
        tokens_TD = normalize(query.tokens[:max_tokens])
        yield QueryRows(query.query_id, chosen.relevant[query.query_id], tokens_TD, query.teacher)


def _caches(config: Config) -> Path:
    return Path(config.train.cache_folder or os.path.join(tempfile.gettempdir(), f"prvr-ray-{os.getuid()}"))


def _nothing(split: str, selection: Selection, feature_set: FeatureSet) -> str:
    splits = feature_set.collection.queries()["split"].unique().to_pylist()
    found = "; ".join(f"{text} {reason}" for reason, text in selection.report().get("left_out", {}).items())
    known = ", ".join(str(name) for name in splits) or "none"
    return f"split {split!r} has no query with features of its video ({found or 'no queries at all'}); splits: {known}"

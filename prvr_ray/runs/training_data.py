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
from prvr_ray.runs.encoders import check_encoders, identify_encoders
from prvr_ray.student.batching import align, cut_tokens, normalize, sample_uniform
from prvr_ray.student.cache import FeatureCache, QueryRows, VideoRows, open_cache, write_cache
from prvr_ray.student.noise import degrade_teacher

NAMED = 5  # of left-out items, this many are named
FEWEST_QUERIES, FEWEST_VIDEOS = 30, 10  # of a validation split; below, its SumR moves in steps of several points


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

    def contents(self) -> dict[str, set[tuple[Any, ...]]]:
        """The queries by id and text, and the videos by id and file."""
        kept = {
            "queries": (self.queries, ["query_id", "text_hash"]),
            "videos": (self.segments, ["video_id", "added_at"]),
        }
        return {
            what: set(zip(*(rows[column].to_pylist() for column in columns), strict=True))
            for what, (rows, columns) in kept.items()
        }

    def warn_if_small(self, split: str) -> str:
        """What to do where a split is too small to choose a checkpoint by; empty where it is not."""
        if len(self.queries) >= FEWEST_QUERIES and self.num_videos >= FEWEST_VIDEOS:
            return ""
        return (
            f"the validation split {split!r} has {len(self.queries)} queries and {self.num_videos} videos, too few to "
            f"choose the best epoch by (under {FEWEST_QUERIES} queries or {FEWEST_VIDEOS} videos): import captions of "
            f"more videos for it, or move some there with the split column of a captions file"
        )

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
        """All shards that exist now.

        Raises:
            ValueError: there is no such root or feature set.
        """
        collection = existing_collection(root)
        feature_set = collection.features(features)
        encoders = identify_encoders(feature_set.spec())
        of_features = {f"features/{features}/{name}": names for name, names in feature_set.plan().items()}
        shards = {**collection.plan(), **of_features}
        return cls(collection.store.uri, {"features": features, "encoders": encoders, "shards": shards})

    def pinned(self, plan: dict[str, Any], where: str) -> "TrainingData":
        """The same data as the first call for `where` pinned it.

        Raises:
            ValueError: that call read another feature set, or this one when it had other encoders.
        """
        if plan["features"] != self.plan["features"]:
            raise ValueError(
                f"{where} reads the feature set {plan['features']!r}, not {self.plan['features']!r}. Give another name"
            )
        pinned = TrainingData(self.root, plan)
        check_encoders(plan.get("encoders"), pinned.feature_set().spec(), where, f"features/{plan['features']}")
        return pinned

    def settle(self, config: Config) -> Config:
        """The configuration with what it leaves to the features: which scores of the teacher soften labels.

        Ingested features know the logit scale of their encoder. Imported ones, and those of versions that did not
        record it, are taken as the paper took them: raw.
        """
        if config.train.teacher_scores != "auto":
            return config
        spec = self.feature_set().spec()
        scale = None if "imported" in spec else spec["teacher"].get("logit_scale")
        settled = (
            {"teacher_scores": "raw"} if scale is None else {"teacher_scores": "logit_scale", "logit_scale": scale}
        )
        return config.model_copy(update={"train": config.train.model_copy(update=settled)})

    def describe_changes(self, now: "TrainingData", config: Config) -> str:
        """How what a training would read now differs from this; empty where it does not.

        Raises:
            ValueError: a split has nothing left now.
        """
        if now.plan["shards"] == self.plan["shards"]:
            return ""
        found = []
        for split, only_captioned in ((config.train.train_split, True), (config.train.validation_split, False)):
            before, after = (data.select(split, only_captioned).contents() for data in (self, now))
            for what in before:
                new, gone = len(after[what] - before[what]), len(before[what] - after[what])
                counts = ", ".join(f"{n} {word}" for n, word in ((new, "new or changed"), (gone, "gone")) if n)
                found += [f"{what} of {split}: {counts}"] if counts else []
        return "; ".join(found)

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
        in_split = feature_set.collection.queries(split)
        matched = feature_set.match_queries(in_split)
        matched.check(f"split {split!r}")
        encoded, stale = matched.rows, set(matched.stale)
        has_vectors = set(encoded["query_id"].to_pylist())
        wanted = in_split.select(["query_id", "video_ids"]).to_pylist()
        videos = feature_set.collection.videos()
        of_split = set(videos.filter(pc.equal(videos["split"], split))["video_id"].to_pylist())

        relevant = {row["query_id"]: [v for v in row["video_ids"] or [] if v in ready] for row in wanted}
        usable = {query: found for query, found in relevant.items() if found and query in has_vectors}
        captioned = {video for found in usable.values() for video in found}
        chosen = captioned if only_captioned else captioned | (of_split & ready)
        selection = Selection(
            complete.filter(pc.is_in(complete["video_id"], pa.array(sorted(chosen), pa.string()))),
            encoded.filter(pc.is_in(encoded["query_id"], pa.array(sorted(usable), pa.string()))),
            usable,
            {
                "queries whose videos have no features": sorted(q for q, found in relevant.items() if not found),
                "queries without features": sorted(
                    q for q, found in relevant.items() if found and q not in usable and q not in stale
                ),
                "queries whose text has changed since they were encoded; run `prvr ingest`": sorted(
                    q for q, found in relevant.items() if found and q in stale
                ),
                "videos without features": sorted(of_split - ready),
                "videos without captions": sorted(of_split & ready - captioned) if only_captioned else [],
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
        alignment = "published" if faithful else False  # caches of earlier versions hold another alignment as True
        # "text": caches of versions before held captions whose text had changed since they were encoded.
        values = [
            "text",
            self.root,
            self.plan,
            split,
            is_training,
            student.max_frames,
            student.max_tokens,
            alignment,
            removed,
        ]
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
    keep_last = feature_set.has_causal_text
    for query in feature_set.read_queries(chosen.queries):
        tokens_TD = normalize(cut_tokens(query.tokens, max_tokens, keep_last))
        yield QueryRows(query.query_id, chosen.relevant[query.query_id], tokens_TD, query.teacher)


def _caches(config: Config) -> Path:
    return Path(config.train.cache_folder or os.path.join(tempfile.gettempdir(), f"prvr-ray-{os.getuid()}"))


def _nothing(split: str, selection: Selection, feature_set: FeatureSet) -> str:
    splits = feature_set.collection.queries()["split"].unique().to_pylist()
    found = "; ".join(f"{text} {reason}" for reason, text in selection.report().get("left_out", {}).items())
    known = ", ".join(str(name) for name in splits) or "none"
    return f"split {split!r} has no query with features of its video ({found or 'no queries at all'}); splits: {known}"

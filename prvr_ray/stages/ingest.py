"""`prvr ingest`: brings a collection's features up to date with its videos and captions.

What is left to do stands in `wanted`, the work itself in `ingest_pipeline`; here they are put together and counted.
"""

import json
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import FeatureSet, declare_spec, open_collection
from prvr_ray.config import IngestSettings
from prvr_ray.encoders import EncoderSpec, describe_encoder
from prvr_ray.stages.captions import match_captions
from prvr_ray.stages.ingest_pipeline import plan_pipeline
from prvr_ray.stages.session import connect
from prvr_ray.stages.sources import list_sources
from prvr_ray.stages.wanted import (
    classes_to_retry,
    current_videos,
    standing_videos,
    states,
    wanted_queries,
    wanted_videos,
)


def ingest(
    settings: IngestSettings,
    *,
    root: str,
    videos: str,
    features: str = "default",
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Bring a collection's features up to date with a source of videos and with the collection's captions.

    Args:
        root: the collection.
        videos: a folder, a URI prefix, or a manifest of URIs.
        features: name of the feature set.
        address: of a Ray cluster; None: embedded.
        dry_run: only say what would be done.

    Returns:
        Counts of videos (with failures by class), frames and queries, of queries whose names of videos became ids, of
        files that are missing or skipped, and exit_code 1 if too many videos failed, or of some neither features nor
        failures stand. A missing file is a failure only where its features do not stand.

    Raises:
        ValueError: unusable settings or source, an unknown encoder, a feature set made with other settings, or a video
            whose captions say two splits under two of its names.
    """
    collection = open_collection(root)
    feature_set = collection.features(features)
    retry = classes_to_retry(settings.retry)
    encoders = _describe(settings)
    sources, num_skipped = list_sources(videos, settings.extensions)
    num_matched = 0
    if not dry_run:
        declare_spec(feature_set.store, _spec(settings, encoders))
        num_matched = match_captions(collection, (source.video_id for source in sources))
    current, changed = current_videos(collection, sources, settings.split_shares, time.time())
    work = wanted_videos(current, states(feature_set, current), retry, settings.limit)
    queries = wanted_queries(collection, feature_set)
    wanted = {"videos": len(work), "bytes": sum(work["size"].to_pylist()), "queries": len(queries)}
    of_source = {"missing": pc.count(current["missing"]).as_py(), "skipped": num_skipped}
    if dry_run:
        return {"wanted": wanted, **of_source, "output": feature_set.store.uri}
    if len(changed):
        collection.video_shards.append(changed)
        current = standing_videos(collection, current)
        work = wanted_videos(current, states(feature_set, current), retry, settings.limit)
    num_frames = 0
    if len(work) or len(queries):
        with connect(address):
            run = f"shard-{time.time_ns():020d}"
            pipeline = plan_pipeline(settings, encoders)
            num_frames = pipeline.ingest_videos(work, feature_set.video_shards, run)
            pipeline.ingest_queries(queries, feature_set.query_shards, run)
    counts = _count(feature_set, standing_videos(collection, current), work, settings.max_failure_share)
    done = {"frames": num_frames, "queries": len(queries), "queries_matched": num_matched}
    return counts | done | of_source | {"output": feature_set.store.uri}


def _describe(settings: IngestSettings) -> list[EncoderSpec]:
    """The teacher's encoder, and the student's where it is another one."""
    if not settings.encoder:
        raise ValueError("--encoder MODEL:PRETRAINED names the teacher, for example ViT-B-32:laion2b_s34b_b79k")
    names = dict.fromkeys([settings.encoder, settings.student_encoder or settings.encoder])
    return [describe_encoder(name) for name in names]


def _spec(settings: IngestSettings, encoders: list[EncoderSpec]) -> dict[str, Any]:
    """spec.json: everything that decides the vectors."""
    teacher, student = encoders[0], encoders[-1]
    spec = {
        "teacher": {**asdict(teacher), "dim": teacher.embed_dim},
        "student": {**asdict(student), "dim": student.embed_dim},
        "shared": len(encoders) == 1,
        "fps": settings.fps,
        "sampling": settings.sampling,
        "segment_frames": settings.segment_frames,
    }
    return json.loads(json.dumps(spec))  # as it will be read back


def _count(features: FeatureSet, videos: pa.Table, work: pa.Table, max_failure_share: float) -> dict[str, Any]:
    """What stands now of the source's videos. work: those that this run was to bring."""
    standing = states(features, videos)
    failures = Counter(state.error_class for state in standing.values() if state.error_class)
    num_failed = failures.total()
    done = {video_id for video_id, state in standing.items() if state.is_complete or state.error_class}
    lost = sorted(set(work["video_id"].to_pylist()) - done)
    counts = {
        "total": len(videos),
        "ingested": sum(state.is_complete for state in standing.values()),
        "failed": num_failed,
        "by_error_class": dict(failures.most_common()),
    }
    warnings = []
    if num_failed > max_failure_share * max(len(videos), 1):
        share = f"{num_failed} of {len(videos)} videos failed: more than --max-failure-share {max_failure_share:g}"
        warnings.append(f"{share} allows, so the exit code is 1")
    if lost:
        warnings.append(
            f"of {len(lost)} videos that were worked on ({lost[0]!r}) neither features nor a failure stand, so the exit"
            " code is 1; did their files change meanwhile, or does another run work on them? Run it again"
        )
    if warnings:
        return {"videos": counts, "warning": "; ".join(warnings), "exit_code": 1}
    return {"videos": counts, "exit_code": 0}

"""`prvr ingest`: brings a collection's features up to date with its videos and captions.

`prvr_ray.features.pending` finds the pending work and `ingest_pipeline` does it; this module combines them and counts.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import (
    Collection,
    FeatureSet,
    declare_spec,
    of_current_files,
    open_collection,
    preview_spec,
    read_spec,
    unmatched_captions,
)
from prvr_ray.collection.features import count_partial, partial_videos
from prvr_ray.config import IngestSettings
from prvr_ray.encoders import EncoderSpec, describe_encoder, find_long_texts, make_absolute, make_portable
from prvr_ray.features.caption_matching import match_captions
from prvr_ray.features.pending import (
    classes_to_retry,
    compare_videos,
    find_pending_queries,
    find_pending_videos,
    read_states,
    use_recorded_times,
)
from prvr_ray.features.sources import list_sources
from prvr_ray.stages.ingest_pipeline import plan_pipeline
from prvr_ray.stages.session import connect
from prvr_ray.storage import Store


def ingest(
    settings: IngestSettings,
    *,
    root: str,
    videos: str,
    features: str = "default",
    address: str | None = None,
    anonymous: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Bring a collection's features up to date with a source of videos and with the collection's captions.

    Args:
        root: URI of the collection.
        videos: a folder, a URI prefix, or a manifest of URIs.
        features: name of the feature set.
        address: of a Ray cluster; None: embedded.
        anonymous: read the videos without credentials, from public buckets.
        dry_run: only report the pending work.

    Returns:
        Counts of videos (with failures by class), frames, queries, queries newly matched with videos, and missing
        (failures only without features) or skipped files; exit_code 1 if too many videos failed or some were lost.

    Raises:
        ValueError: unusable settings or source, an unknown encoder, a feature set made with other settings, or a video
            whose captions name two splits.
    """
    collection = open_collection(root).cached()
    feature_set = collection.features(features)
    retry = classes_to_retry(settings.retry)
    encoders = _describe_encoders(settings)
    sources, num_skipped = list_sources(videos, settings.extensions, anonymous=anonymous)
    spec = _make_spec(settings, encoders, root)
    may_differ = _names_that_may_differ(feature_set.store, spec)
    preview_spec(feature_set.store, spec, may_differ=may_differ)
    num_matched = 0 if dry_run else match_captions(collection, sources["video_id"].to_pylist())
    current, changed = compare_videos(collection, sources, settings.split_shares, time.time())
    work = find_pending_videos(current, read_states(feature_set, current), retry, settings.limit)
    queries = find_pending_queries(collection, feature_set)
    of_source = {"missing": pc.count(current["missing"]).as_py(), "skipped": num_skipped}
    if dry_run:
        pending = {"videos": len(work), "bytes": pc.sum(work["size"]).as_py() or 0, "queries": len(queries)}
        return {"wanted": pending, **of_source, "output": feature_set.store.uri}
    if len(changed):
        collection.video_shards.append(changed)
        current = use_recorded_times(collection, current)
        work = find_pending_videos(current, read_states(feature_set, current), retry, settings.limit)
    num_frames = 0
    if len(work) or len(queries):
        declare = partial(declare_spec, feature_set.store, spec, may_differ=may_differ)
        target = open_collection(root).features(features)  # not the cached one: this one is sent to workers
        with connect(address), _spec_only_with_shards(target, declare):
            pipeline, run = plan_pipeline(settings, encoders, anonymous), f"shard-{time.time_ns():020d}"
            num_frames = pipeline.ingest_videos(work, target.video_shards, run, declare)
            pipeline.ingest_queries(queries, target.query_shards, run, declare)
    collection.forget_listings()
    counts = _count(feature_set, use_recorded_times(collection, current), work, settings)
    done = {"frames": num_frames, "queries": len(queries), "queries_matched": num_matched, **of_source}
    return counts | done | _unmatched(collection) | _too_long(collection, encoders) | {"output": feature_set.store.uri}


def _too_long(collection: Collection, encoders: list[EncoderSpec]) -> dict[str, Any]:
    """Report captions that are longer than an encoder's context, if any."""
    queries = collection.queries()
    encoder = min(encoders, key=lambda encoder: encoder.context_length)
    return find_long_texts(asdict(encoder), queries["query_id"].to_pylist(), queries["text"].to_pylist())


def _unmatched(collection: Collection) -> dict[str, Any]:
    """Report captions that name no video of the collection, if any."""
    known = {*collection.videos()["video_id"].to_pylist(), *collection.removed().to_pylist()}
    found = unmatched_captions(collection.queries(), known)
    return {"unmatched": found} if found else {}


def _describe_encoders(settings: IngestSettings) -> list[EncoderSpec]:
    """Describe the teacher's encoder, and the student's if it is a different one."""
    if not settings.encoder:
        raise ValueError("--encoder MODEL:PRETRAINED names the teacher, for example ViT-B-32:laion2b_s34b_b79k")
    names = dict.fromkeys([settings.encoder, settings.student_encoder or settings.encoder])
    return [describe_encoder(make_absolute(name)) for name in names]


def _make_spec(settings: IngestSettings, encoders: list[EncoderSpec], root: str) -> dict[str, Any]:
    """Make spec.json: everything that determines the vectors, and names of encoders that survive moving the root."""
    teacher, student = (
        {**asdict(encoder), "name": make_portable(encoder.name, root), "dim": encoder.embed_dim}
        for encoder in (encoders[0], encoders[-1])
    )
    spec = {
        "teacher": teacher,
        "student": student,
        "shared": len(encoders) == 1,
        "fps": settings.fps,
        "sampling": settings.sampling,
        "segment_frames": settings.segment_frames,
    }
    return json.loads(json.dumps(spec))  # with JSON's types, as it will be read back


@contextlib.contextmanager
def _spec_only_with_shards(features: FeatureSet, declare: Callable[[], object]) -> Iterator[None]:
    """Declare the spec, and delete it again after an error if no shard was put.

    Otherwise the spec of an encoder that failed would refuse one that works. Workers declare the spec again before
    their first shard, so it exists even if another ingest has just deleted it.
    """
    is_new = not features.store.exists("spec.json")
    declare()
    try:
        yield
    except BaseException:
        if is_new and not features.video_shards.live() and not features.query_shards.live():
            features.store.delete("spec.json")
        raise


def _names_that_may_differ(store: Store, spec: dict[str, Any]) -> list[str]:
    """List the names in a spec that may differ: an encoder is identified by the hashes of its weights and config.

    Specs of earlier versions have no hash of the config. Two models of open_clip's registry may accept the same weights
    but differ in their activation, so for these specs the model names must agree.
    """
    try:
        existing = read_spec(store)
    except ValueError:
        return []
    free = []
    for role in ("teacher", "student"):
        before, now = existing[role], spec[role]
        models = [str(encoder.get("name", "")).partition(":")[0] for encoder in (before, now)]
        has_config = "config_sha256" in before or any(model.endswith(".json") for model in models)
        if "weights_sha256" in before and (has_config or models[0] == models[1]):
            free.append(f"{role}.name")
    return free


def _count(features: FeatureSet, videos: pa.Table, work: pa.Table, settings: IngestSettings) -> dict[str, Any]:
    """Count the source's videos by outcome. work: the videos that this command processed."""
    existing = read_states(features, videos)
    whole = features.complete(of_current_files(features.segments(), videos))
    failures = Counter(existing["error_class"].drop_null().to_pylist())
    num_failed = failures.total()
    has_ended = pc.or_(existing["is_complete"], pc.is_valid(existing["error_class"]))
    ended = existing["video_id"].filter(has_ended).combine_chunks()
    lost = sorted(work["video_id"].filter(pc.invert(pc.is_in(work["video_id"], ended))).to_pylist())
    counts = {
        "total": len(videos),
        "ingested": pc.sum(existing["is_complete"]).as_py() or 0,
        "failed": num_failed,
        "by_error_class": dict(failures.most_common()),
        **count_partial(whole),
    }
    warnings, max_failure_share = [], settings.max_failure_share
    short = [video_id for video_id, share in partial_videos(whole).items() if share < settings.min_decoded_share]
    if short:  # ingested with a lower limit than now
        num_failed += len(short)
        warnings.append(
            f"{len(short)} videos ({short[0]!r}) were ingested earlier with less than --min-decoded-share"
            f" {settings.min_decoded_share:g}; they count as failed here; `prvr remove` removes them"
        )
    too_many = num_failed > max_failure_share * max(len(videos), 1)
    if too_many:
        failed = f"{num_failed} of {len(videos)} videos failed"
        warnings.append(f"{failed}: more than --max-failure-share {max_failure_share:g} allows, so the exit code is 1")
    if lost:
        warnings.append(
            f"{len(lost)} videos ended with neither features nor a failure (e.g. {lost[0]!r}), so the exit code is 1;"
            " did their files change meanwhile, or is another ingest processing them? Run the command again"
        )
    summary: dict[str, Any] = {"videos": counts, "exit_code": int(too_many or bool(lost))}
    return summary | ({"warning": "; ".join(warnings)} if warnings else {})

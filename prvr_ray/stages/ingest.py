"""`prvr ingest`: videos and captions to features, through Ray Data. Decode on CPUs, encode on GPUs, put shards.

What the workers do stands in `decoding`, `encoding` and `committing`, what is left to do in `wanted`; here they are
connected and counted.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.util import metrics

from prvr_ray.collection import FeatureSet, ShardFolder, declare_spec, open_collection
from prvr_ray.config import IngestSettings
from prvr_ray.corpus.container import Limits
from prvr_ray.corpus.frames import FrameSpec
from prvr_ray.corpus.packets import Sampling
from prvr_ray.encoders import EncoderSpec, describe_encoder
from prvr_ray.stages.committing import put_shard
from prvr_ray.stages.decoding import DecodePlan, DecodeVideos
from prvr_ray.stages.encoding import EncodePacks, EncodePlan, EncodeQueries
from prvr_ray.stages.progress import Steps
from prvr_ray.stages.resources import Worker, pool_size, require
from prvr_ray.stages.session import connect
from prvr_ray.stages.sources import list_sources
from prvr_ray.stages.wanted import classes_to_retry, current_videos, states, wanted_queries, wanted_videos

_VIDEOS_PER_TASK = 64
_BYTES_PER_TASK = 256 * 2**20
_PACK_BYTES = 32 * 2**20  # of decoded frames that travel together, about
_QUERIES_PER_TASK = 256
_QUERIES_PER_SHARD = 4096
_PUT_CPUS = 0.1


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
        Counts of videos (with failures by class), frames and queries, and exit_code 1 if too many videos failed.

    Raises:
        ValueError: unusable settings or source, an unknown encoder, or a feature set made with other settings.
    """
    retry = classes_to_retry(settings.retry)
    encoders = _describe(settings)
    sources, num_skipped = list_sources(videos, settings.extensions)
    collection = open_collection(root)
    feature_set = collection.features(features)
    current, changed = current_videos(collection, sources, settings.split_shares, time.time())
    work = wanted_videos(current, states(feature_set, current), retry, settings.limit)
    queries = wanted_queries(collection, feature_set)
    wanted = {"videos": len(work), "bytes": sum(work["size"].to_pylist()), "queries": len(queries)}
    if dry_run:
        return {"wanted": wanted, "skipped": num_skipped, "output": feature_set.store.uri}
    declare_spec(feature_set.store, _spec(settings, encoders))
    if len(changed):
        collection.video_shards.append(changed)
    num_frames = 0
    if len(work) or len(queries):
        with connect(address):
            run = _Run(settings, encoders, f"shard-{time.time_ns():020d}")
            num_frames = run.ingest_videos(work, feature_set.video_shards)
            run.ingest_queries(queries, feature_set.query_shards)
    counts = _count(feature_set, current, settings.max_failure_share)
    done = {"frames": num_frames, "queries": len(queries), "skipped": num_skipped}
    return counts | done | {"output": feature_set.store.uri}


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


def _count(features: FeatureSet, videos: pa.Table, max_failure_share: float) -> dict[str, Any]:
    """What stands now of the source's videos."""
    standing = states(features, videos)
    failures = Counter(state.error_class for state in standing.values() if state.error_class)
    num_failed = failures.total()
    is_bad = num_failed > max_failure_share * max(len(videos), 1)
    counts = {
        "total": len(videos),
        "ingested": sum(state.is_complete for state in standing.values()),
        "failed": num_failed,
        "by_error_class": dict(failures.most_common()),
    }
    return {"videos": counts, "exit_code": int(is_bad)}


class _Run:
    """One run's datasets."""

    def __init__(self, settings: IngestSettings, encoders: list[EncoderSpec], name: str):
        self._settings, self._encoders, self._name = settings, encoders, name
        inputs = [FrameSpec(e.image_size, e.resize_mode, e.interpolation, e.fill_color) for e in encoders]
        self._specs = tuple(dict.fromkeys(inputs))
        num_cpus = ray.cluster_resources().get("CPU", 1.0)
        self._num_decoders = settings.num_decoders or max(1, int(num_cpus))
        decoder_cpus = settings.decoder_cpus or (1.0 if settings.encoder_gpus else 0.5)
        self._decoder = Worker("decoder", decoder_cpus, labels=settings.decoder_labels)
        self._encoder = Worker(
            "encoder", settings.encoder_cpus, settings.encoder_gpus, labels=settings.encoder_labels
        )
        self._encode = EncodePlan(
            tuple(encoder.name for encoder in encoders),
            tuple(self._specs.index(spec) for spec in inputs),
            settings.batch_frames,
            max(1, int(num_cpus / settings.max_encoders)),
        )

    def ingest_videos(self, work: pa.Table, folder: ShardFolder) -> int:
        """Work through the videos; returns the number of frames."""
        if not len(work):
            return 0
        require(self._encoder)
        tasks = _dealt(work, self._num_decoders)
        videos = ray.data.from_arrow(tasks)
        videos.context.target_max_block_size = _PACK_BYTES
        packs = videos.map_batches(
            DecodeVideos,
            fn_constructor_args=(self._decode_plan(),),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=pool_size(1, self._num_decoders, len(tasks))),
            **self._decoder.options,
        )
        rows = packs.map_batches(
            EncodePacks,
            fn_constructor_args=(self._encode,),
            batch_size=1,
            batch_format="pyarrow",
            compute=self._encoder_pool(),
            **self._encoder.options,
        )
        bytes_per_row = self._settings.segment_frames * sum(2 * encoder.embed_dim for encoder in self._encoders)
        put = _put(rows, folder, self._name, self._settings.shard_bytes // bytes_per_row)
        return _follow(put, len(work))

    def ingest_queries(self, queries: pa.Table, folder: ShardFolder) -> None:
        """Encode the captions."""
        if not len(queries):
            return
        rows = ray.data.from_arrow(queries).map_batches(
            EncodeQueries,
            fn_constructor_args=(self._encode,),
            batch_size=_QUERIES_PER_TASK,
            batch_format="pyarrow",
            compute=self._encoder_pool(),
            **self._encoder.options,
        )
        with Steps("queries", len(queries), "queries") as steps:
            for batch in _put(rows, folder, self._name, _QUERIES_PER_SHARD).iter_batches(batch_format="pyarrow"):
                steps.advance(len(batch))

    def _encoder_pool(self) -> ActorPoolStrategy:
        least = self._settings.min_encoders
        return ActorPoolStrategy(min_size=least, max_size=max(least, self._settings.max_encoders))

    def _decode_plan(self) -> DecodePlan:
        settings = self._settings
        frame_bytes = sum(3 * spec.image_size[0] * spec.image_size[1] for spec in self._specs)
        return DecodePlan(
            Sampling(settings.fps, settings.sampling == "keyframes", settings.segment_frames),
            self._specs,
            Limits(settings.max_pixels, settings.max_duration_s),
            settings.decode_timeout_s,
            settings.decode_stall_s,
            settings.decode_memory_bytes,
            pack_frames=max(settings.batch_frames, _PACK_BYTES // frame_bytes),
        )


def _dealt(work: pa.Table, num_decoders: int) -> list[pa.Table]:
    """Cut the work into tasks: small enough that every decoder gets several, and that one lost costs little."""
    most = max(1, min(_VIDEOS_PER_TASK, len(work) // (4 * num_decoders)))
    tasks, begin, num_bytes = [], 0, 0
    for index, size in enumerate(work["size"].to_pylist()):
        if index - begin == most or (num_bytes + size > _BYTES_PER_TASK and index > begin):
            tasks.append(work.slice(begin, index - begin))
            begin, num_bytes = index, 0
        num_bytes += size
    return [*tasks, work.slice(begin)]


def _put(rows: Dataset, folder: ShardFolder, run: str, rows_per_shard: int) -> Dataset:
    return rows.map_batches(
        partial(put_shard, folder=folder, run=run),
        batch_size=max(1, rows_per_shard),
        batch_format="pyarrow",
        num_cpus=_PUT_CPUS,
    )


def _follow(put: Dataset, num_videos: int) -> int:
    """Drive the pipeline, show its progress, and count for the dashboard. Returns the number of frames."""
    counters = {
        name: metrics.Counter(f"prvr_ingest_{name}", f"{name} ingested, as they are committed")
        for name in ("videos", "frames", "failures")
    }
    num_frames, failures, begun = 0, Counter[str](), time.monotonic()
    with Steps("ingest", num_videos, "videos") as steps:
        batches: Iterable[Any] = put.iter_batches(batch_size=None, batch_format="pyarrow")
        for batch in batches:
            frames = pc.sum(batch["num_frames"]).as_py()
            num_frames += frames
            failed = batch["error_class"].drop_null().to_pylist()
            failures.update(failed)
            done = pc.sum(batch["is_last"]).as_py()
            for name, value in {"videos": done, "frames": frames, "failures": len(failed)}.items():
                if value:
                    counters[name].inc(value)
            rate = num_frames / (time.monotonic() - begun)
            steps.advance(done, f"{rate:.0f} frames/s, {failures.total()} failed")
    return num_frames

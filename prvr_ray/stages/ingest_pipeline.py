"""The Ray Data pipelines of ingest: decode on CPUs, encode on GPUs, put shards, and count what has been put.

What the workers do stands in `decoding`, `encoding` and `committing`; here they get their places.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.util import metrics

from prvr_ray.collection import ShardFolder
from prvr_ray.config import IngestSettings
from prvr_ray.corpus.container import Limits
from prvr_ray.corpus.frames import FrameSpec
from prvr_ray.corpus.packets import Sampling
from prvr_ray.encoders import EncoderSpec
from prvr_ray.stages.committing import PutShard, check_put
from prvr_ray.stages.datasets import dataset_of
from prvr_ray.stages.decoding import DecodePlan, DecodeVideos
from prvr_ray.stages.encoding import EncodePacks, EncodePlan, EncodeQueries
from prvr_ray.stages.progress import Steps
from prvr_ray.stages.resources import Worker, has_autoscaler, pool_size, require

_VIDEOS_PER_TASK = 64
_BYTES_PER_TASK = 256 * 2**20
_GPU_BATCHES_PER_PACK = 4  # the last batch of a pack is not full, which costs a GPU time
_BLOCK_BYTES = 2**20  # less than a pack, so that each pack travels on at once
_QUERIES_PER_TASK = 256
_QUERIES_PER_SHARD = 4096
_PUT_CPUS = 0.1
_PUTS_AT_ONCE = 4  # each in a process of its own, which costs some 200 MB


@dataclass(frozen=True)
class Pipeline:
    """What the workers are told and how many there are."""

    decode: DecodePlan
    encode: EncodePlan
    decoder: Worker
    num_decoders: tuple[int, int]  # at the start, at most
    encoder: Worker
    num_encoders: tuple[int, int]  # at least, at most
    rows_per_shard: int

    def ingest_videos(self, work: pa.Table, folder: ShardFolder, run: str) -> int:
        """Work through videos (WORK); returns the number of frames that were put."""
        if not len(work):
            return 0
        require(self.decoder)
        require(self.encoder)
        first, most = self.num_decoders
        tasks = _tasks(work, most)
        packs = dataset_of(tasks, _BLOCK_BYTES).map_batches(
            DecodeVideos,
            fn_constructor_args=(self.decode,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=pool_size(1, first, len(tasks)), max_size=pool_size(1, most, len(tasks))
            ),
            **self.decoder.options,
        )
        rows = packs.map_batches(
            EncodePacks,
            fn_constructor_args=(self.encode,),
            batch_size=1,
            batch_format="pyarrow",
            compute=self._encoder_pool(len(tasks)),
            runtime_env=self._encoder_environment(),
            **self.encoder.options,
        )
        return _follow(_put_shards(rows, folder, run, self.rows_per_shard), len(work))

    def ingest_queries(self, queries: pa.Table, folder: ShardFolder, run: str) -> None:
        """Encode captions: query_id and text."""
        if not len(queries):
            return
        rows = dataset_of([queries], _BLOCK_BYTES).map_batches(
            EncodeQueries,
            fn_constructor_args=(self.encode,),
            batch_size=_QUERIES_PER_TASK,
            batch_format="pyarrow",
            compute=self._encoder_pool(1),
            runtime_env=self._encoder_environment(),
            **self.encoder.options,
        )
        batches: Iterable[Any] = _put_shards(rows, folder, run, _QUERIES_PER_SHARD).iter_batches(batch_format="pyarrow")
        with Steps("queries", len(queries), "queries") as steps:
            for batch in batches:
                check_put(batch)
                steps.advance(len(batch))

    def _encoder_environment(self) -> dict[str, Any] | None:
        """Threads of an encoder on CPUs share these with decoders: one that waits for another must not spin."""
        return None if self.encoder.gpus else {"env_vars": {"OMP_WAIT_POLICY": "passive"}}

    def _encoder_pool(self, num_tasks: int) -> ActorPoolStrategy:
        """A fixed size: Ray Data shrinks a pool that may shrink to the GPUs that stand, before more of them come."""
        return ActorPoolStrategy(size=pool_size(*self.num_encoders, num_tasks))


def plan_pipeline(settings: IngestSettings, encoders: list[EncoderSpec]) -> Pipeline:
    """Lay a pipeline out for the cluster that runs now. encoders: the teacher's, and the student's if another."""
    inputs = [FrameSpec(e.image_size, e.resize_mode, e.interpolation, e.fill_color) for e in encoders]
    specs = tuple(dict.fromkeys(inputs))
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    decode = DecodePlan(
        Sampling(settings.fps, settings.sampling == "keyframes", settings.segment_frames),
        specs,
        Limits(settings.max_pixels, settings.max_duration_s),
        settings.decode_timeout_s,
        settings.decode_stall_s,
        settings.decode_memory_bytes,
        pack_frames=settings.batch_frames * (_GPU_BATCHES_PER_PACK if settings.encoder_gpus else 1),
    )
    encode = EncodePlan(
        tuple(encoder.name for encoder in encoders),
        tuple(specs.index(spec) for spec in inputs),
        settings.batch_frames,
        num_threads=max(1, num_cpus // settings.max_encoders),
        num_gpus=settings.encoder_gpus,
    )
    row_bytes = settings.segment_frames * sum(2 * encoder.embed_dim for encoder in encoders)
    decoder = Worker("decoder", settings.decoder_cpus or _default_share(settings), labels=settings.decoder_labels)
    num_decoders = settings.num_decoders or max(1, num_cpus)
    most_encoders = max(settings.min_encoders, settings.max_encoders)
    first = _decoders_at_first(num_decoders, decoder.cpus, _PUT_CPUS + most_encoders * settings.encoder_cpus)
    return Pipeline(
        decode,
        encode,
        decoder,
        (first, num_decoders),
        Worker("encoder", settings.encoder_cpus, settings.encoder_gpus, labels=settings.encoder_labels),
        (settings.min_encoders, most_encoders),
        max(1, settings.shard_bytes // row_bytes),
    )


def _default_share(settings: IngestSettings) -> float:
    """CPUs that one decoder reserves: with an encoder on the same CPUs both take what the other leaves."""
    return 1.0 if settings.encoder_gpus else 0.5


def _decoders_at_first(wanted: int, cpus: float, other_cpus: float) -> int:
    """Decoders that start before the other workers: on a cluster that cannot grow they must not take all its CPUs.

    Several nodes get one, for what is free of all of them together may fit no encoder on any.
    """
    if has_autoscaler():
        return wanted
    if sum(node["Alive"] for node in ray.nodes()) > 1:
        return 1
    free_cpus = ray.cluster_resources().get("CPU", 0.0) - other_cpus
    return max(1, min(wanted, int(free_cpus / cpus + 1e-9)))


def _tasks(work: pa.Table, num_decoders: int) -> list[pa.Table]:
    """Cut the work into tasks: small enough that every decoder gets several, and that one lost costs little."""
    most = max(1, min(_VIDEOS_PER_TASK, len(work) // (32 * num_decoders)))
    tasks, begin, num_bytes = [], 0, 0
    for index, size in enumerate(work["size"].to_pylist()):
        if index - begin == most or (num_bytes + size > _BYTES_PER_TASK and index > begin):
            tasks.append(work.slice(begin, index - begin))
            begin, num_bytes = index, 0
        num_bytes += size
    return [*tasks, work.slice(begin)]


def _put_shards(rows: Dataset, folder: ShardFolder, run: str, rows_per_shard: int) -> Dataset:
    """Put rows as shards; what comes is for `check_put`.

    Actors do it: a process for tasks that come now and then ends in between, and its next start takes over a second of
    a core that decoders want.
    """
    return rows.map_batches(
        PutShard,
        fn_constructor_args=(folder, run),
        batch_size=rows_per_shard,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=1, max_size=_PUTS_AT_ONCE),
        num_cpus=_PUT_CPUS,
    )


def _follow(put: Dataset, num_videos: int) -> int:
    """Drive the pipeline, show its progress, and count for a dashboard. Returns the number of frames."""
    counters = _Counters()
    num_frames = num_failures = 0
    begun = time.monotonic()
    batches: Iterable[Any] = put.iter_batches(batch_size=None, batch_format="pyarrow")
    with Steps("ingest", num_videos, "videos") as steps:
        for batch in batches:
            check_put(batch)
            videos, frames = (pc.sum(batch[name]).as_py() for name in ("is_last", "num_frames"))
            failures = batch["error_class"].drop_null().value_counts().to_pylist()
            counters.add(videos, frames, failures)
            num_frames += frames
            num_failures += sum(failure["counts"] for failure in failures)
            rate = num_frames / (time.monotonic() - begun)
            steps.advance(videos, f"{rate:.0f} frames/s, {num_failures} failed")
    return num_frames


class _Counters:
    """The progress as Ray metrics: prvr_ingest_videos, prvr_ingest_frames, and prvr_ingest_failures by error_class."""

    def __init__(self) -> None:
        self._videos = metrics.Counter("prvr_ingest_videos", "Videos of which the last segment is committed.")
        self._frames = metrics.Counter("prvr_ingest_frames", "Frames of which the vectors are committed.")
        self._failures = metrics.Counter("prvr_ingest_failures", "Videos that cannot be used.", ("error_class",))

    def add(self, videos: int, frames: int, failures: list[dict[str, Any]]) -> None:
        """Count what was committed. failures: `values` (a class) and `counts`."""
        for counter, count in ((self._videos, videos), (self._frames, frames)):
            if count:
                counter.inc(count)
        for failure in failures:
            self._failures.inc(failure["counts"], {"error_class": failure["values"]})

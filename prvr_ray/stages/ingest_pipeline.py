"""The pipeline of `prvr ingest`: Ray Data connects the workers that decode, encode and put shards."""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.util import metrics

from prvr_ray.collection import ShardFolder
from prvr_ray.collection.shard_writer import PutShard, raise_put_errors
from prvr_ray.config import IngestSettings
from prvr_ray.encoders import EncoderSpec
from prvr_ray.features.decode_worker import DecodePlan, DecodeVideos
from prvr_ray.features.encode_worker import EncodePacks, EncodePlan, EncodeQueries
from prvr_ray.progress import Steps
from prvr_ray.stages.datasets import make_dataset
from prvr_ray.stages.resources import Pool, Worker, choose_pool_size, fit_pools, has_autoscaler, require
from prvr_ray.video.container import Limits
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling

_VIDEOS_PER_TASK = 64
_BYTES_PER_TASK = 256 * 2**20
_GPU_BATCHES_PER_PACK = 4  # only the last batch of a pack is not full, so larger packs waste less of a GPU
_BLOCK_BYTES = 2**20  # less than a pack, so that each pack is passed on immediately
_QUERIES_PER_TASK = 256
_QUERIES_PER_SHARD = 4096
_PUT_CPUS = 0.1
_PUTS_AT_ONCE = 4  # each in its own process of about 200 MB
# CPUs that a decoder reserves, by whether the encoders have GPUs; the smaller values fit machines with one or two CPUs.
# Reservations only limit how many workers start: decoders and encoders on the same CPUs share them freely.
_DECODER_CPUS = {False: (0.5, 0.4, 0.2, 0.1), True: (1.0, 0.5, 0.4, 0.2, 0.1)}


@dataclass(frozen=True)
class Pipeline:
    """The workers' plans, resources and numbers."""

    decode: DecodePlan
    encode: EncodePlan
    decoders: tuple[Worker, ...]  # choices, of which the first that fits beside the other workers is used
    max_decoders: int
    encoder: Worker
    num_encoders: tuple[int, int]  # minimum, maximum
    rows_per_shard: int

    def ingest_videos(
        self, work: pa.Table, folder: ShardFolder, run: str, before_first: Callable[[], object] | None = None
    ) -> int:
        """Process videos (WORK); return the number of frames that were put. before_first: see PutShard."""
        if not len(work):
            return 0
        decoder, num_decoders, num_encoders = self.fit_workers()
        tasks = _cut_tasks(work, self.max_decoders)
        packs = make_dataset(tasks, _BLOCK_BYTES).map_batches(
            DecodeVideos,
            fn_constructor_args=(self.decode,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=choose_pool_size(1, num_decoders, len(tasks)),
                max_size=choose_pool_size(1, self.max_decoders, len(tasks)),
            ),
            **decoder.options,
        )
        rows = packs.map_batches(
            EncodePacks,
            fn_constructor_args=(self.encode,),
            batch_size=1,
            batch_format="pyarrow",
            compute=_encoder_pool(num_encoders, len(tasks)),
            runtime_env=self._encoder_environment(),
            **self.encoder.options,
        )
        return _follow_ingest(_put_shards(rows, folder, run, self.rows_per_shard, before_first), len(work))

    def ingest_queries(
        self, queries: pa.Table, folder: ShardFolder, run: str, before_first: Callable[[], object] | None = None
    ) -> None:
        """Encode captions: query_id and text. before_first: see PutShard."""
        if not len(queries):
            return
        rows = make_dataset([queries], _BLOCK_BYTES).map_batches(
            EncodeQueries,
            fn_constructor_args=(self.encode,),
            batch_size=_QUERIES_PER_TASK,
            batch_format="pyarrow",
            compute=_encoder_pool(self.num_encoders, 1),
            runtime_env=self._encoder_environment(),
            **self.encoder.options,
        )
        batches: Iterable[Any] = _put_shards(rows, folder, run, _QUERIES_PER_SHARD, before_first).iter_batches(
            batch_format="pyarrow"
        )
        with Steps("queries", len(queries), "queries") as steps:
            for batch in batches:
                raise_put_errors(batch)
                steps.advance(len(batch))

    def _encoder_environment(self) -> dict[str, Any] | None:
        """Make waiting threads of CPU encoders sleep instead of spin: decoders use the same CPUs."""
        return None if self.encoder.gpus else {"env_vars": {"OMP_WAIT_POLICY": "passive"}}

    def fit_workers(self) -> tuple[Worker, int, tuple[int, int]]:
        """Fit decoders, encoders and the worker that puts shards to the cluster, so that all of them can run at once.

        Returns:
            The decoder, the number of decoders to start with, and the minimum and maximum number of encoders.

        Raises:
            ValueError: they cannot all run at the same time; the message names what is missing.
        """
        require(self.decoders[-1])
        require(self.encoder)
        if has_autoscaler():
            return self.decoders[0], self.max_decoders, self.num_encoders
        put = Pool(Worker("put", _PUT_CPUS), 1, 1)
        encoders = Pool(self.encoder, *self.num_encoders)
        layouts = [[encoders, put, Pool(decoder, 1, self.max_decoders)] for decoder in self.decoders]
        number, (num_encoders, _, num_decoders), has_room_now = fit_pools(layouts)
        if not has_room_now:
            print(
                "ingest: waiting for CPUs or GPUs that other work on the cluster is using", file=sys.stderr, flush=True
            )
        # Ray chooses the nodes: with several, decoders might fill the only node on which an encoder fits.
        is_alone = sum(node["Alive"] for node in ray.nodes()) == 1
        return self.decoders[number], num_decoders if is_alone else 1, (self.num_encoders[0], num_encoders)


def _encoder_pool(num_encoders: tuple[int, int], num_tasks: int) -> ActorPoolStrategy:
    """Make a pool of fixed size: Ray Data would shrink any other to the present GPUs before more nodes arrive."""
    return ActorPoolStrategy(size=choose_pool_size(*num_encoders, num_tasks))


def plan_pipeline(settings: IngestSettings, encoders: list[EncoderSpec], anonymous: bool = False) -> Pipeline:
    """Plan a pipeline for the connected cluster.

    Args:
        encoders: the teacher's, and the student's if it is a different one.
        anonymous: read the videos without credentials.
    """
    inputs = [FrameSpec(e.image_size, e.resize_mode, e.interpolation, e.fill_color) for e in encoders]
    specs = tuple(dict.fromkeys(inputs))
    encode = EncodePlan(
        tuple(encoder.name for encoder in encoders),
        tuple(specs.index(spec) for spec in inputs),
        settings.batch_frames,
        num_threads=max(1, _most_cpus() // settings.max_encoders),
        num_gpus=settings.encoder_gpus,
    )
    decode = DecodePlan(
        Sampling(settings.fps, settings.sampling == "keyframes", settings.segment_frames),
        specs,
        Limits(settings.max_pixels, settings.max_duration_s),
        settings.decode_timeout_s,
        settings.decode_stall_s,
        settings.decode_memory_bytes,
        pack_frames=settings.batch_frames * (_GPU_BATCHES_PER_PACK if settings.encoder_gpus else 1),
        anonymous=anonymous,
        min_decoded_share=settings.min_decoded_share,
    )
    row_bytes = settings.segment_frames * sum(2 * encoder.embed_dim for encoder in encoders)
    cpus = [settings.decoder_cpus] if settings.decoder_cpus else _DECODER_CPUS[bool(settings.encoder_gpus)]
    return Pipeline(
        decode,
        encode,
        tuple(Worker("decoder", amount, labels=settings.decoder_labels) for amount in cpus),
        settings.num_decoders or max(1, int(ray.cluster_resources().get("CPU", 1))),
        Worker("encoder", settings.encoder_cpus, settings.encoder_gpus, labels=settings.encoder_labels),
        (settings.min_encoders, max(settings.min_encoders, settings.max_encoders)),
        max(1, settings.shard_bytes // row_bytes),
    )


def _most_cpus() -> int:
    """Return the number of CPUs of the largest node."""
    return int(max(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["Alive"]))


def _cut_tasks(work: pa.Table, num_decoders: int) -> list[pa.Table]:
    """Split the work into tasks, small enough that every decoder gets several and that a lost one costs little."""
    most = max(1, min(_VIDEOS_PER_TASK, len(work) // (32 * num_decoders)))
    tasks, begin, num_bytes = [], 0, 0
    for index, size in enumerate(work["size"].to_pylist()):
        if index - begin == most or (num_bytes + size > _BYTES_PER_TASK and index > begin):
            tasks.append(work.slice(begin, index - begin))
            begin, num_bytes = index, 0
        num_bytes += size
    return [*tasks, work.slice(begin)]


def _put_shards(
    rows: Dataset,
    folder: ShardFolder,
    run: str,
    rows_per_shard: int,
    before_first: Callable[[], object] | None,
) -> Dataset:
    """Put rows as shards; `raise_put_errors` checks the result.

    This uses actors: Ray ends an idle task process between shards, and starting the next takes over a second of a core
    that the decoders need.
    """
    return rows.map_batches(
        PutShard,
        fn_constructor_args=(folder, run, before_first),
        batch_size=rows_per_shard,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=1, max_size=_PUTS_AT_ONCE),
        num_cpus=_PUT_CPUS,
    )


def _follow_ingest(put: Dataset, num_videos: int) -> int:
    """Run the pipeline, show its progress and update the metrics; return the number of frames."""
    counters = _Counters()
    num_frames = num_failures = 0
    begun = time.monotonic()
    batches: Iterable[Any] = put.iter_batches(batch_size=None, batch_format="pyarrow")
    with Steps("ingest", num_videos, "videos") as steps:
        for batch in batches:
            raise_put_errors(batch)
            videos, frames = (pc.sum(batch[name]).as_py() for name in ("is_last", "num_frames"))
            failures = batch["error_class"].drop_null().value_counts().to_pylist()
            counters.add(videos, frames, failures)
            num_frames += frames
            num_failures += sum(failure["counts"] for failure in failures)
            rate = num_frames / (time.monotonic() - begun)
            steps.advance(videos, f"{rate:.0f} frames/s, {num_failures} failed")
    return num_frames


class _Counters:
    """Progress as Ray metrics: prvr_ingest_videos, prvr_ingest_frames, and prvr_ingest_failures by error_class."""

    def __init__(self) -> None:
        self._videos = metrics.Counter("prvr_ingest_videos", "Videos whose last segment is committed.")
        self._frames = metrics.Counter("prvr_ingest_frames", "Frames whose vectors are committed.")
        self._failures = metrics.Counter("prvr_ingest_failures", "Videos that cannot be used.", ("error_class",))

    def add(self, videos: int, frames: int, failures: list[dict[str, Any]]) -> None:
        """Count committed videos, frames and failures: rows of `values` (an error class) and `counts`."""
        for counter, count in ((self._videos, videos), (self._frames, frames)):
            if count:
                counter.inc(count)
        for failure in failures:
            self._failures.inc(failure["counts"], {"error_class": failure["values"]})

"""Ingest against its limits: decoding alone, encoding alone, and the pipeline of both on the same rendered files.

`alone` uses every core. If decoders and encoder share the cores, the pipeline cannot beat 1/(1/decode + 1/encode); if
the encoder waits instead of computing, as on a device of its own, the pipeline cannot beat the slower of the two.
Decoders wait until the encoder has loaded, and a small run comes first, so Ray's start-up is not measured.

    python benchmarks/ingest.py [--parts keyframes shards pipeline waiting small]
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import open_clip
import pyarrow as pa
import torch
from PIL import Image
from safetensors.torch import save_file

from prvr_ray import schema
from prvr_ray.collection import ShardFolder
from prvr_ray.config import IngestSettings
from prvr_ray.encoders import EncoderSpec, describe_encoder
from prvr_ray.features.decode_worker import DecodePlan, DecodeVideos
from prvr_ray.features.encode_worker import EncodePacks, EncodePlan
from prvr_ray.features.pending import WORK
from prvr_ray.features.sources import list_sources
from prvr_ray.schema import pack_vectors
from prvr_ray.stages.ingest_pipeline import Pipeline, plan_pipeline
from prvr_ray.stages.session import connect
from prvr_ray.storage import open_store, read_table
from prvr_ray.video.container import Limits
from prvr_ray.video.decoder_process import VideoDecoder
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import read_segments

MODEL = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "layers": 8, "width": 384, "head_width": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
NUM_VIDEOS, SECONDS, NUM_SMALL = 96, 60, 10_000
WAITING = {"slower": 2 / 3, "faster": 3 / 2}  # speed of encoders that only wait, over decoding alone
NUM_CPUS = os.cpu_count() or 1
os.environ.setdefault(
    "RAY_worker_niceness", "0"
)  # Ray's workers run at a lower priority by default; decoding alone does not


def render(path: Path, num_frames: int, height: int = 360, width: int = 640) -> None:
    """Render a drifting texture, a moving shape and noise: 30 frames/s, a keyframe every 2 s, x264's defaults."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    texture = np.asarray(coarse.resize((width * 2, height * 2), Image.Resampling.BICUBIC))
    noise = rng.normal(0, 4, (8, height, width, 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 60
        stream.codec_context.options = {"sc_threshold": "0"}
        for number in range(num_frames):
            x, y, z = number % width, number // 2 % height, number * 4 % (width - width // 8)
            picture = (texture[y : y + height, x : x + width] + noise[number % 8]).clip(0, 255).astype(np.uint8)
            picture[height // 3 : height // 2, z : z + width // 8] = 255, number % 256, 80
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def make_videos(folder: Path, num_frames: int, count: int, height: int = 360, width: int = 640) -> pa.Table:
    """Render one file, link it under many names, and return the pending work."""
    folder.mkdir()
    original = folder / "video-00000.mp4"
    render(original, num_frames, height, width)
    for number in range(1, count):
        (folder / f"video-{number:05d}.mp4").hardlink_to(original)
    sources, _ = list_sources(str(folder), ["mp4"])
    rows = [row | {"added_at": 0.0, "skip": []} for row in sources.drop_columns("split").to_pylist()]
    return pa.Table.from_pylist(rows, WORK)


def make_encoder(folder: Path) -> str:
    """Write a random CLIP about as slow as decoding; return its name."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL)
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "weights.safetensors")
    (folder / "model.json").write_text(json.dumps({"model_cfg": MODEL}))
    return f"{folder}/model.json:{folder}/weights.safetensors"


def timed(function: Callable[[], Any], repeats: int = 3) -> float:
    """Return the seconds of the fastest of several calls."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def keyframes(folder: Path) -> dict[str, float]:
    """Compare keyframes only, and the default choice of packets, with sequential decoding at 1 frame/s."""
    path = folder / "long.mp4"
    render(path, SECONDS * 30)

    def decode(sampling: Sampling, restart_packets: float) -> None:
        specs = [FrameSpec((224, 224))]
        for _ in read_segments(str(path), sampling, specs, Limits(), restart_packets=restart_packets):
            pass

    sequential = timed(lambda: decode(Sampling(), float("inf")))
    return {
        "sequential_times_real_time": SECONDS / sequential,
        "keyframes_over_sequential": sequential / timed(lambda: decode(Sampling(keyframes_only=True), 4.0)),
        "default_over_sequential": sequential / timed(lambda: decode(Sampling(), 4.0)),
    }


def shards(folder: Path) -> dict[str, float]:
    """Compare writing and reading a shard of 64 MiB with a plain write (with fsync) and read of the same bytes."""
    vectors = pack_vectors(np.random.default_rng(0).normal(size=(256, 512)))
    rows = [{"video_id": f"v{n}", "segment": 0, "num_frames": 256, "teacher": vectors} for n in range(256)]
    table = pa.Table.from_pylist(rows, schema.FEATURE_VIDEOS)
    home = ShardFolder(open_store(folder / "shards"), schema.FEATURE_VIDEOS)
    home.append(table, "a.parquet")
    data = home.store.get("a.parquet")
    plain = folder / "plain"

    def write_plainly() -> None:
        with open(plain, "wb") as file:
            file.write(data)
            os.fsync(file.fileno())

    def read_plainly() -> int:
        return int(np.frombuffer(plain.read_bytes(), np.uint8).max())

    def read_shard() -> int:
        values = read_table(home.store, "a.parquet")["teacher"]
        return max(int(np.frombuffer(value.as_buffer(), np.uint8).max()) for value in values)

    return {
        "shard_write_over_plain": timed(write_plainly, 7) / timed(lambda: home.append(table, "b.parquet"), 7),
        "shard_read_over_plain": timed(read_plainly, 7) / timed(read_shard, 7),
    }


_decoding: DecodeVideos


def _start_decoding(plan: DecodePlan) -> None:
    global _decoding
    _decoding = DecodeVideos(plan)


def _decode(work: pa.Table) -> list[pa.Table]:
    return list(_decoding(work))


def _count_decoded(work: pa.Table) -> int:
    return sum(len(pack["frames"][0][0].as_buffer()) for pack in _decoding(work))


def decode_alone(plan: DecodePlan, work: pa.Table) -> float:
    """Measure decoding with one decoder per core, in seconds."""
    size = max(1, min(64, len(work) // (32 * NUM_CPUS)))  # as in the pipeline
    tasks = [work.slice(start, size) for start in range(0, len(work), size)]
    workers = ProcessPoolExecutor(NUM_CPUS, get_context("spawn"), _start_decoding, (plan,))
    with workers:
        list(workers.map(_count_decoded, [work.slice(0, 1)] * 4 * NUM_CPUS))  # starts every child
        return timed(lambda: list(workers.map(_count_decoded, tasks)), 1)


def encode_alone(pipeline: Pipeline, work: pa.Table, num_frames: int) -> float:
    """Measure encoding of decoded frames on all cores, in seconds."""
    _start_decoding(pipeline.decode)
    packs = _decode(work.slice(0, 4))
    encoding = EncodePacks(pipeline.encode)
    list(encoding(packs[0]))
    rows: list[pa.Table] = []
    seconds = timed(lambda: rows.extend(row for pack in packs for row in encoding(pack)), 1)
    return seconds * num_frames / sum(sum(table["num_frames"].to_pylist()) for table in rows)


@dataclass(frozen=True)
class Gate:
    """A file that processes wait for before they start."""

    path: Path

    def open(self) -> None:
        self.path.touch()

    def opened_at(self) -> float:
        while not self.path.exists():
            time.sleep(0.01)
        return self.path.stat().st_mtime


@dataclass(frozen=True)
class GatedDecodePlan(DecodePlan):
    """Decoders that start when the encoder has loaded."""

    gate: Gate

    def load(self) -> VideoDecoder:
        decoder = super().load()
        self.gate.opened_at()
        return decoder


@dataclass(frozen=True)
class GatedEncodePlan(EncodePlan):
    """An encoder that opens the gate when it has loaded; with frames_per_s, it waits instead of computing."""

    gate: Gate
    spec: EncoderSpec
    frames_per_s: float | None

    def load(self) -> list[Any]:
        encoders = [WaitingEncoder(self.spec, self.frames_per_s)] if self.frames_per_s else super().load()
        self.gate.open()
        return encoders


@dataclass(frozen=True)
class WaitingEncoder:
    """Imitates an encoder on a device of its own."""

    spec: EncoderSpec
    frames_per_s: float

    def encode_frames(self, frames_F3HW: np.ndarray) -> np.ndarray:
        time.sleep(len(frames_F3HW) / self.frames_per_s)
        return np.zeros((len(frames_F3HW), self.spec.embed_dim), np.float32)


def run_pipeline(
    pipeline: Pipeline, spec: EncoderSpec, work: pa.Table, folder: Path, frames_per_s: float | None = None
) -> tuple[float, int]:
    """Return the seconds from the gate to the last commit, and the number of frames."""
    gate = Gate(folder / f"gate-{time.time_ns()}")
    gated = replace(
        pipeline,
        decode=GatedDecodePlan(**vars(pipeline.decode), gate=gate),
        encode=GatedEncodePlan(**vars(pipeline.encode), gate=gate, spec=spec, frames_per_s=frames_per_s),
    )
    store = open_store(folder / f"root-{time.time_ns()}")
    num_frames = gated.ingest_videos(work, ShardFolder(store, schema.FEATURE_VIDEOS), "shard")
    commits = [Path(store.uri, item.key).stat().st_mtime for item in store.list()]
    return max(commits) - gate.opened_at(), num_frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["keyframes", "shards", "pipeline", "waiting", "small"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    chosen = parser.parse_args().parts
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures: dict[str, float] = {}
        if "keyframes" in chosen:
            figures |= keyframes(folder)
        if "shards" in chosen:
            figures |= shards(folder)
        if {"pipeline", "waiting", "small"} & set(chosen):
            with connect():
                figures |= pipelines(folder, chosen)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def pipelines(folder: Path, chosen: list[str]) -> dict[str, float]:
    """Measure the figures that need Ray."""
    spec = describe_encoder(make_encoder(folder))
    settings = IngestSettings(encoder=spec.name, shard_bytes=2**20, batch_frames=32)
    pipeline = plan_pipeline(settings, [spec])
    work = make_videos(folder / "videos", SECONDS * 30, NUM_VIDEOS)
    figures: dict[str, float] = {}
    run_pipeline(pipeline, spec, work.slice(0, 2), folder)  # starts the workers that put shards
    if {"pipeline", "waiting"} & set(chosen):
        num_frames = NUM_VIDEOS * SECONDS
        decode_s = decode_alone(pipeline.decode, work)
        figures["decode_frames_per_s"] = num_frames / decode_s
    if "pipeline" in chosen:
        encode_s = encode_alone(pipeline, work, num_frames)
        seconds, _ = run_pipeline(pipeline, spec, work, folder)
        figures["encode_frames_per_s"] = num_frames / encode_s
        figures["pipeline_frames_per_s"] = num_frames / seconds
        figures["pipeline_over_limit"] = (decode_s + encode_s) / seconds
    if "waiting" in chosen:
        for name, speed in WAITING.items():
            seconds, _ = run_pipeline(pipeline, spec, work, folder, frames_per_s=speed * num_frames / decode_s)
            figures[f"waiting_{name}_over_slower_side"] = decode_s / min(1.0, speed) / seconds
    if "small" in chosen:
        figures |= small_videos(folder, plan_pipeline(IngestSettings(encoder=spec.name), [spec]), spec)
    return figures


def small_videos(folder: Path, pipeline: Pipeline, spec: EncoderSpec) -> dict[str, float]:
    """Measure the cost of a one-frame video beyond decoding, with an encoder that takes no time."""
    work = make_videos(folder / "small", 1, NUM_SMALL, 64, 64)
    decode_s = decode_alone(pipeline.decode, work)
    seconds, num_frames = run_pipeline(pipeline, spec, work, folder, frames_per_s=1e9)
    assert num_frames == NUM_SMALL
    return {
        "small_video_ms": 1000 * seconds / NUM_SMALL,
        "small_video_overhead_ms": 1000 * (seconds - decode_s) / NUM_SMALL,
    }


if __name__ == "__main__":
    main()

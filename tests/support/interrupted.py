"""Videos to ingest, what must stand of them in the end, and `prvr ingest` as a process that can be killed."""

import collections
import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray.cloudpickle

from prvr_ray import cli
from prvr_ray.collection import Collection, open_collection
from prvr_ray.config import IngestSettings
from prvr_ray.encoders import describe_encoder, load_encoder
from prvr_ray.features.decode_worker import DecodePlan
from prvr_ray.schema import pack_vectors, unpack_vectors
from prvr_ray.stages import ingest as stage
from prvr_ray.video.container import Limits
from prvr_ray.video.decoder_process import VideoDecoder
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import Segment, read_segments
from support.rendering import render

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this module

FPS, SEGMENT_FRAMES = 2.0, 3
Expected = dict[str, tuple[list[float], np.ndarray]]


def render_videos(folder: Path, count: int, num_kinds: int = 6) -> Path:
    """Videos of several lengths: two to four segments each."""
    folder.mkdir(parents=True)
    for number in range(count):
        path = folder / f"video {number:03d}.mp4"
        if number < num_kinds:
            render(path, 20 + 7 * number, fps=10)
        else:
            path.write_bytes((folder / f"video {number % num_kinds:03d}.mp4").read_bytes())
    return folder


def settings_for(encoder: str, **changes: object) -> IngestSettings:
    """One row a shard: as many commits as there can be."""
    options = {"fps": FPS, "segment_frames": SEGMENT_FRAMES, "num_decoders": 2, "shard_bytes": 1, "batch_frames": 4}
    return IngestSettings(encoder=encoder, **{**options, **changes})


def expected_features(videos: Path, encoder: str) -> Expected:
    """Times and float16 vectors of every video, from one plain loop: no Ray, no child process, no shards."""
    spec, model = describe_encoder(encoder), load_encoder(encoder)
    frame_spec = FrameSpec(spec.image_size, spec.resize_mode, spec.interpolation, spec.fill_color)
    found: dict[bytes, tuple[list[float], np.ndarray]] = {}
    result = {}
    for path in sorted(videos.glob("*.mp4")):
        content = path.read_bytes()
        if content not in found:
            (whole,) = read_segments(str(path), Sampling(FPS), [frame_spec], Limits())
            vectors_FD = unpack_vectors(pack_vectors(model.encode_frames(whole.frames[0])), spec.embed_dim)
            found[content] = whole.timestamps_s.tolist(), vectors_FD
        result[path.name] = found[content]
    return result


def check_features(collection: Collection, expected: Expected) -> None:
    """Readers see every video once, whole, with the expected times, and vectors within one float16 ulp."""
    features = collection.features()
    segments = features.segments()
    keys = list(zip(segments["video_id"].to_pylist(), segments["segment"].to_pylist(), strict=True))
    assert len(keys) == len(set(keys))
    found = {video.video_id: video for video in features.read_videos(features.complete())}
    assert set(found) == set(expected)
    for video_id, (times, vectors_FD) in expected.items():
        assert found[video_id].timestamps_s.tolist() == times
        check_vectors(found[video_id].teacher, vectors_FD)


def check_vectors(a_FD: np.ndarray, b_FD: np.ndarray) -> None:
    assert a_FD.shape == b_FD.shape
    ulp = np.spacing(np.maximum(np.abs(a_FD), np.abs(b_FD)))
    assert (np.abs(a_FD.astype(np.float32) - b_FD.astype(np.float32)) <= ulp).all()


class CountingDecoder(VideoDecoder):
    """Writes a line to a file for every segment that it decodes."""

    def __init__(self, log: Path):
        super().__init__()
        self._log = log

    def segments(self, path: str, *args: object, **options: object) -> Iterator[Segment]:
        for segment in super().segments(path, *args, **options):
            with self._log.open("a") as log:
                log.write(f"{segment.index} {Path(path).name}\n")
            yield segment


@dataclass(frozen=True)
class CountingDecodePlan(DecodePlan):
    log: Path

    def load(self) -> VideoDecoder:
        return CountingDecoder(self.log)


def count_decoded(log: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], collections.Counter]:
    """Let ingest count from now on; gives what has been decoded how often: (video_id, segment), a flat folder's."""
    plan = stage.plan_pipeline

    def counting(*args: object) -> object:
        pipeline = plan(*args)
        return replace(pipeline, decode=CountingDecodePlan(**vars(pipeline.decode), log=log))

    monkeypatch.setattr(stage, "plan_pipeline", counting)
    log.touch()

    def counts() -> collections.Counter:
        pairs = (line.split(" ", 1) for line in log.read_text().splitlines())
        return collections.Counter((name, int(index)) for index, name in pairs)

    return counts


def committed(root: str) -> set[tuple[str, int]]:
    """(video_id, segment) of every row in any shard."""
    rows = open_collection(root).features().video_shards.scan(["video_id", "segment"])
    return set(zip(rows["video_id"].to_pylist(), rows["segment"].to_pylist(), strict=True))


def check_nothing_again(root: str, before: set[tuple[str, int]], shards_before: set[str]) -> None:
    """The run since then has put no segment that stood already."""
    rows = open_collection(root).features().video_shards.scan(["video_id", "segment"]).to_pylist()
    new = [(row["video_id"], row["segment"]) for row in rows if row["shard"] not in shards_before]
    assert not set(new) & before


def shard_names(root: str) -> list[str]:
    return open_collection(root).features().video_shards.live()


@contextlib.contextmanager
def ingesting(
    root: str, videos: str, settings: IngestSettings, log: Path, environment: dict[str, str] | None = None
) -> Iterator[BaseProcess]:
    """`prvr ingest` as a process of its own with a Ray of its own; nothing of it is left afterwards."""
    changed = settings.model_dump(exclude_defaults=True)
    options = [f"--ingest.{name}={value}" for name, value in changed.items()]
    command = ["ingest", "--root", root, "--videos", videos, "--json", *options]
    variables = {**os.environ, "PRVR_OBJECT_STORE_BYTES": str(128 * 2**20), **(environment or {})}
    process = _PROCESSES.Process(target=_prvr, args=(command, variables, log))
    process.start()
    try:
        yield process
    finally:
        end_family(process)


# Its processes begin with everything imported: a command that is killed every few seconds would do little else.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["prvr_ray.cli", "prvr_ray.stages.ingest"])


def _prvr(command: list[str], variables: dict[str, str], log: Path) -> None:
    os.environ.update(variables)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(cli.main(command))


def end_family(process: BaseProcess) -> None:
    """Kill a process as suddenly as can be. Ray ends with its driver; whatever has not after a second is ended here."""
    family = psutil.Process(process.pid).children(recursive=True) if process.is_alive() else []
    process.kill()
    process.join()
    _, left = psutil.wait_procs(family, timeout=1)
    for member in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def wait_until(happens: Callable[[], bool], process: BaseProcess, timeout_s: float = 120.0) -> bool:
    """Whether something happened before the process ended."""
    deadline = time.monotonic() + timeout_s
    while process.is_alive():
        if happens():
            return True
        assert time.monotonic() < deadline, "it neither happened nor ended"
        time.sleep(0.02)
    return False


def exit_code(process: BaseProcess, timeout_s: float = 180.0) -> int | None:
    """Of a process that has that long to end."""
    process.join(timeout_s)
    return process.exitcode


def summary_of(log: Path) -> dict:
    """The JSON line that a finished `prvr ingest` printed last."""
    return json.loads(log.read_text().strip().splitlines()[-1])

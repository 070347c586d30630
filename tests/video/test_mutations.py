"""Damaged files: whichever bytes are flipped, cut or spliced, a file gives frames or one failure, in time."""

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.leftovers import decoding_children, end_decoding_children, open_pipes_and_files
from support.rendering import render

from prvr_ray.video.container import Limits
from prvr_ray.video.decoder_process import VideoDecoder
from prvr_ray.video.errors import PERMANENT, VideoError
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling

SPECS = [FrameSpec((24, 24))]
NUM_DECODERS = 2
LIMITS = Limits(max_pixels=4096 * 4096)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Rendered files of several containers and codecs, and the real ones where they are at hand."""
    folder = tmp_path_factory.mktemp("originals")
    kinds = {
        "mp4": "libx264", "mkv": "libx264", "avi": "mpeg4", "flv": "libx264", "ts": "libx264", "mpg": "mpeg2video",
        "webm": "libvpx", "wmv": "wmv2", "mov": "libx265", "3gp": "mpeg4",
    }  # fmt: skip
    paths = []
    for suffix, codec in kinds.items():
        b_frames = 0 if codec in ("libvpx", "wmv2") else 2
        paths.append(render(folder / f"video.{suffix}", 40, codec=codec, b_frames=b_frames))
    real = Path(os.environ.get("PRVR_TEST_DATA", "/nowhere"), "videos")
    return paths + sorted(path for path in real.glob("*/*") if path.stat().st_size < 200_000)


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Flip some bytes, cut the end, cut a piece out, or put a piece of another file in."""
    values = np.frombuffer(data, np.uint8).copy()
    begin, end = sorted(rng.integers(0, len(values) + 1, 2))
    match rng.integers(0, 5):
        case 0:
            places = rng.integers(0, len(values), rng.integers(1, 20))
            values[places] = rng.integers(0, 256, len(places))
        case 1:
            places = rng.integers(0, min(len(values), 2000), rng.integers(1, 8))  # most headers stand at the start
            values[places] ^= 1 << rng.integers(0, 8, len(places)).astype(np.uint8)
        case 2:
            values = values[:end]
        case 3:
            values = np.concatenate([values[:begin], values[end:]])
        case 4:
            piece = np.frombuffer(other, np.uint8)[begin:end]
            values = np.concatenate([values[:begin], piece, values[begin:]])
    return values.tobytes()


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_give_frames_or_a_failure(tmp_path, originals, count):
    end_decoding_children()
    before = open_pipes_and_files()
    paths = [tmp_path / f"mutated-{number}.mp4" for number in range(NUM_DECODERS)]
    rngs = np.random.default_rng(count).spawn(NUM_DECODERS)
    with ThreadPoolExecutor(NUM_DECODERS) as threads:
        shares = threads.map(partial(outcomes_of, originals, count // NUM_DECODERS), paths, rngs)
        outcomes = sum(shares, Counter[str]())
    assert outcomes.total() == count
    assert outcomes["frames"] > count // 5
    assert outcomes["decode"] > 0
    assert set(outcomes) <= {"frames", "out_of_memory", *PERMANENT}
    assert decoding_children() == []
    assert open_pipes_and_files() <= before


def outcomes_of(originals: list[Path], count: int, path: Path, rng: np.random.Generator) -> Counter[str]:
    """What one decoder makes of so many mutations, one after the other at one path."""
    outcomes = Counter[str]()
    with VideoDecoder(timeout_s=30, stall_s=10, memory_bytes=2**30) as decoder:
        for _ in range(count):
            first, second = rng.choice(len(originals), 2)
            path.write_bytes(mutated(originals[first].read_bytes(), originals[second].read_bytes(), rng))
            begun = time.monotonic()
            outcomes[ingested(decoder, path)] += 1
            assert time.monotonic() - begun < 35
    return outcomes


def ingested(decoder: VideoDecoder, path: Path) -> str:
    try:
        segments = list(decoder.segments(str(path), Sampling(fps=5.0), SPECS, LIMITS))
    except VideoError as error:
        return error.error_class if str(error) else "no message"
    assert segments[-1].is_last
    for segment in segments:
        assert len(segment.frames[0]) == len(segment.timestamps_s)
        assert (np.diff(segment.timestamps_s) > 0).all()
        assert 0 <= segment.decoded_share <= 1
    return "frames"

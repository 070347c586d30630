"""Times a training step at the paper's shape, and its parts.

128 videos of 30 to 110 frames, 450 captions of 6 to 18 tokens, 1024-d inputs, hidden size 384, both branches, dropout
on. The reference is the forward and backward pass of the two encoders alone. Kinds of steps alternate, so that other
load on the machine affects all of them; the median of the rounds is reported.

    python benchmarks/training_step.py [--rounds 7] [--device cpu]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from prvr_ray.config import StudentSettings, TrainSettings
from prvr_ray.student.batching import Batch, BatchReader, draw_batches, normalize, prefetch
from prvr_ray.student.cache import FeatureCache, QueryRows, VideoRows, read_cache, write_cache
from prvr_ray.student.exchange import Exchange
from prvr_ray.student.objective import EpochWeights
from prvr_ray.student.training import Stopwatch, create_state, train_step

BATCHES, VIDEOS, CAPTIONS, INPUT_DIM, TEACHER_DIM = 4, 128, 450, 1024, 512
FULL = TrainSettings()
PLAIN = TrainSettings(distillation_weight=0, inheritance_soft_targets=False, exploration_soft_targets=False)
BF16 = TrainSettings(precision="bf16")


def make_features(folder: Path) -> FeatureCache:
    """Write a cache of random features; each batch of 128 videos has 450 captions."""
    rng = np.random.default_rng(0)
    videos, queries = [], []
    for v in range(BATCHES * VIDEOS):
        num_frames = int(rng.integers(30, 111))
        frames_FD = normalize(rng.normal(size=(num_frames, INPUT_DIM)))
        videos.append(VideoRows(f"v{v:04d}", frames_FD, rng.normal(size=(num_frames, TEACHER_DIM))))
        for k in range(CAPTIONS // VIDEOS + (v % VIDEOS < CAPTIONS % VIDEOS)):
            tokens_TD = normalize(rng.normal(size=(int(rng.integers(6, 19)), INPUT_DIM)))
            queries.append(QueryRows(f"v{v:04d}#{k}", [f"v{v:04d}"], tokens_TD, rng.normal(size=TEACHER_DIM)))
    write_cache(folder, videos, queries)
    return read_cache(folder)


class Steps:
    """A student with given settings, and its steps on the cache."""

    def __init__(self, cache: FeatureCache, settings: TrainSettings, device: str) -> None:
        self.settings, self.device = settings, device
        self.reader = BatchReader(cache, device=device)
        self.state = create_state(cache, StudentSettings(), settings, BATCHES, device)
        self.weights = EpochWeights.of(settings, 0)

    def step(self, batch: Batch) -> None:
        """Run a whole step: encode, score, losses, backward, update."""
        train_step(self.state, batch, self.settings, self.weights, Exchange())

    def encode(self, batch: Batch) -> None:
        """Run the forward and backward pass of the two encoders alone."""
        model = self.state.model
        with torch.autocast(self.device, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            frames = model.encode_frame_rows(batch.frames_RD, batch.frame_layout)
            queries = model.encode_query_rows(batch.tokens_RD, batch.token_layout)
        outputs = [*frames.values(), *queries.values()]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        model.zero_grad()

    def data_wait_share(self) -> float:
        """Measure the fraction of an epoch spent waiting for batches."""
        watch = Stopwatch()
        videos = np.arange(len(self.reader.cache.video_ids))
        for batch in watch.waits(prefetch(self.reader.load, draw_batches(videos, VIDEOS, seed=0, epoch=0))):
            self.step(self.reader.place(batch))
        return watch.metrics()["speed/data_wait_share"]


def timed(work: Callable[[], None], device: str) -> float:
    """Time the work in seconds, including the device's queue."""
    begun = time.perf_counter()
    work()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - begun


def measure(cache: FeatureCache, rounds: int, device: str) -> dict[str, float]:
    """Measure the median seconds of each kind of step, and their ratios."""
    full, plain, bf16 = (Steps(cache, settings, device) for settings in (FULL, PLAIN, BF16))
    batch = full.reader.read(np.arange(VIDEOS))
    kinds = {
        "step_s": lambda: full.step(batch),
        "encoders_s": lambda: full.encode(batch),
        "step_without_distillation_s": lambda: plain.step(batch),
        "bf16_step_s": lambda: bf16.step(batch),
    }
    times = [{kind: timed(work, device) for kind, work in kinds.items()} for _ in range(rounds + 1)][1:]
    figures = {kind: statistics.median(time[kind] for time in times) for kind in kinds}
    return figures | {
        "step_over_encoders": figures["step_s"] / figures["encoders_s"],
        "with_over_without_distillation": figures["step_s"] / figures["step_without_distillation_s"],
        "bf16_over_float32": figures["bf16_step_s"] / figures["step_s"],
        "data_wait_share": full.data_wait_share(),
        "videos_per_s": VIDEOS / figures["step_s"],
    }


def main() -> None:
    """Print the figures, then the same as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one warm-up round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(make_features(Path(folder)), arguments.rounds, arguments.device)
    for name, value in figures.items():
        print(f"{name:32s} {value:8.3f}")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()

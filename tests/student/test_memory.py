"""Training on a corpus that is larger than the memory that the process may have."""

import subprocess
import sys
from pathlib import Path

import pytest

VIDEOS, FRAMES, DIM = 800, 128, 2048  # 419 MB of float16
ALLOWED_BYTES = 200 * 2**20

# The kernel refuses private memory (allocations) beyond the limit; mapped files are not private.
TRAIN = f"""
import resource, sys
from pathlib import Path

import numpy as np
import torch

from prvr_ray.config import StudentSettings, TrainSettings
from prvr_ray.student.cache import QueryRows, VideoRows, open_cache, write_cache
from prvr_ray.student.training import fit

torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)


def private_bytes():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmData")]
    return int(line.split()[1]) * 1024


def fill(folder, num_videos):
    rng = np.random.default_rng(0)
    frames_FD = rng.standard_normal(({FRAMES}, {DIM}), np.float32)
    videos = (VideoRows(f"v{{n:05d}}", np.roll(frames_FD, n, 1), frames_FD[:, :64]) for n in range(num_videos))
    queries = (
        QueryRows(f"q{{n:05d}}", [f"v{{n:05d}}"], rng.standard_normal((5, 16)), np.ones(64)) for n in range(num_videos)
    )
    write_cache(folder, videos, queries)


limit = private_bytes() + {ALLOWED_BYTES}
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
folder = Path(sys.argv[1])
train = open_cache(folder / "train", lambda path: fill(path, {VIDEOS}))
validation = open_cache(folder / "val", lambda path: fill(path, 20))
assert (folder / "train/frames.f16").stat().st_size == {VIDEOS * FRAMES * DIM * 2}
try:
    np.ones({2 * ALLOWED_BYTES}, np.uint8)
    sys.exit("the limit does not hold")
except MemoryError:
    pass
settings = TrainSettings(num_epochs=1, videos_per_batch=4)
state = fit(train, validation, StudentSettings(hidden_dim=16), settings)
print(state.progress.num_updates)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_corpus_of_twice_the_memory_is_written_and_trained_on(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", TRAIN, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == VIDEOS / 4

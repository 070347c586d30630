"""A long video needs no more memory than a short one."""

import json
import subprocess
import sys

import pytest
from support.rendering import render

MEASURE = """
import json, resource, sys
import psutil
import pyarrow as pa
from prvr_ray.config import IngestSettings
from prvr_ray.video.container import Limits
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.features.decode_worker import DecodePlan, DecodeVideos

segment_frames = IngestSettings().segment_frames
sampling = Sampling(1.0, segment_frames=segment_frames)
plan = DecodePlan(sampling, (FrameSpec((64, 64)),), Limits(), 600.0, 60.0, 2**31, 64, False, 0.0)
video = {"video_id": "v", "uri": sys.argv[1], "etag": "e", "added_at": 0.0, "missing": None, "skip": []}
num_bytes = 0
for pack in DecodeVideos(plan)(pa.Table.from_pylist([video])):
    num_bytes += len(pack["frames"][0][0].as_buffer())
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(child,) = psutil.Process().children()
peak = int(next(line.split()[1] for line in open(f"/proc/{child.pid}/status") if line.startswith("VmHWM")))
print(json.dumps({"frames": num_bytes // (3 * 64 * 64), "worker_kib": own, "child_kib": peak}))
"""


def measure(path):
    output = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, timeout=300)
    assert output.returncode == 0, output.stderr
    return json.loads(output.stdout)


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_three_hours_take_as_much_memory_as_three_minutes(tmp_path, suffix):
    short = measure(render(tmp_path / f"short.{suffix}", 180, fps=1, gop=30))
    long = measure(render(tmp_path / f"long.{suffix}", 3 * 3600, fps=1, gop=30))
    assert (short["frames"], long["frames"]) == (180, 3 * 3600)
    for process in ("worker_kib", "child_kib"):
        assert long[process] <= 1.5 * short[process], process

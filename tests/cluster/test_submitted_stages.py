"""Every stage as a job, submitted over HTTP to a head with its dashboard: the demo world from videos to answers."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clusters import BIN, Head, running_head
from support.small_clip import write_small_clip

from prvr_ray.demo.world import plan_world, queries_of, render
from prvr_ray.features.importing import import_collection

JOBS = Path(__file__).parents[2] / "jobs"
NUM_VIDEOS = {"train": 8, "val": 4, "test": 5}
TRAIN = [
    "--student.hidden_dim", "32", "--train.num_epochs", "2", "--train.videos_per_batch", "4",
    "--train.worker_cpus", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head(num_cpus=2) as running:
        yield running


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with videos, one of them broken, their manifest, an encoder, and root/, where the captions stand."""
    folder = tmp_path_factory.mktemp("world")
    scripts = plan_world(0, NUM_VIDEOS)
    for script in scripts:
        render(script, folder)
    (folder / "broken.mp4").write_bytes(b"no video")
    lines = [{"uri": s.video_id, "video_id": s.video_id, "split": s.split} for s in scripts]
    write_lines(folder / "videos.jsonl", [*lines, {"uri": "broken.mp4", "video_id": "broken.mp4"}])
    own = ("query_id", "text", "split")
    captions = [{**query["moments"][0], **{name: query[name] for name in own}} for query in queries_of(scripts)]
    write_lines(folder / "captions.jsonl", captions)
    import_collection("jsonl", f"{folder}/captions.jsonl", f"{folder}/root")
    write_small_clip(folder / "encoder")
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def submitted(head: Head, *command: str) -> tuple[int, dict[str, Any]]:
    """Exit code of `prvr submit`, and what the job said last in the log that was followed; {} if it was no JSON."""
    ended = subprocess.run(
        [BIN / "prvr", "submit", "--address", head.dashboard, *command, "--json"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    return ended.returncode, last_json(ended.stdout)


def run_script(head: Head, name: str, *options: str) -> dict[str, Any]:
    """The same for a script of jobs/ and Ray's own client; it must end well."""
    command = [BIN / "ray", "job", "submit", "--address", head.dashboard, "--", "python", JOBS / name, *options]
    ended = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout[-3000:]
    return last_json(ended.stdout)


def last_json(log: str) -> dict[str, Any]:
    lines = [line for line in log.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


@pytest.mark.slow
def test_all_stages_run_as_jobs_with_their_logs_and_exit_codes(head, world):
    root = ["--root", f"{world}/root"]
    encoder = f"{world}/encoder/model.json:{world}/encoder/weights.safetensors"
    code, ingest = submitted(head, "ingest", "--videos", f"{world}/videos.jsonl", *root, "--encoder", encoder)
    assert (code, ingest["videos"]["ingested"], ingest["videos"]["failed"], ingest["queries"]) == (1, 17, 1, 51)
    code, train = submitted(head, "train", *root, "--run", "r", *TRAIN)
    assert (code, train["epochs"]) == (0, 2)
    code, index = submitted(head, "index", *root, "--run", "r", "--index", "i")
    assert (code, index["videos"]) == (0, 17)
    code, score = submitted(head, "score", *root, "--index", "i", "--queries", "test", "--output", "o")
    assert (code, score["queries"]) == (0, 15)
    evaluation = run_script(head, "evaluate.py", *root, "--run", "r", "--split", "test")
    assert {"teacher", "inheritance", "exploration", "fused", "teacher+student"} == set(evaluation["rows"])
    searched = ["--tune.num_trials", "2", "--tune.grace_epochs", "1", "--tune.confirm_top", "0"]
    assert sum(run_script(head, "tune.py", *root, "--study", "s", *TRAIN, *searched)["states"].values()) == 2

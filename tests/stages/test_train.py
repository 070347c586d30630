"""Training through Ray: what a run leaves, what stops it before it starts, and that kills do not change its result."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from ray.train import ControllerError, WorkerGroupError
from support import released_layout
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prvr_ray import schema
from prvr_ray.collection import open_collection
from prvr_ray.config import Config, resolve
from prvr_ray.features.importing import import_collection
from prvr_ray.runs.run import RunFolder, open_run
from prvr_ray.runs.training_data import TrainingData
from prvr_ray.stages.train import train

pytestmark = pytest.mark.usefixtures("local_ray")


def released(folder: Path, root: str) -> str:
    """A root with imported features: 20 training, 8 validation, 4 test videos."""
    released_layout.render(folder / "released", {"train": 20, "val": 8, "test": 4})
    import_collection("released", str(folder / "released"), root)
    return root


@pytest.fixture
def root(tmp_path: Path) -> str:
    return released(tmp_path, str(tmp_path / "root"))


def settings(cache: Path, **of_train: object) -> Config:
    """A small student, batches of 6 videos (the last of an epoch of 2), dropout on."""
    of_train = {"num_epochs": 3, "videos_per_batch": 6, "lr": 2e-3, "cache_folder": str(cache), **of_train}
    return resolve({"student": {"hidden_dim": 16, "max_frames": 12}, "train": of_train}, "activitynet")


def final_state(folder: RunFolder) -> bytes:
    key = folder.latest_checkpoint()
    assert key is not None
    return folder.store.get(key)


def test_a_run_on_imported_features_leaves_all_that_later_stages_read(root, tmp_path):
    config = settings(tmp_path / "cache", num_workers=2)
    summary = train(config, root=root, run="first")
    assert (summary["train"]["videos"], summary["validation"]["videos"], summary["epochs"]) == (20, 8, 3)

    folder = open_run(root, "first")
    student, trained_with = folder.load_student(), folder.config()
    assert trained_with.student == config.student
    assert trained_with.train == config.train.model_copy(update={"teacher_scores": "raw"})  # imported features
    assert not student.training
    assert student.encode_frames(torch.randn(1, 3, 24), torch.ones(1, 3))["inheritance"].shape == (1, 3, 16)

    epochs = folder.metrics()
    assert [metrics["epoch"] for metrics in epochs] == [0, 1, 2]
    best = max(epochs, key=lambda metrics: metrics["fused/sumr"])
    assert folder.best()["fused/sumr"] == best["fused/sumr"] == pytest.approx(summary["fused"]["sumr"], abs=0.01)
    shards = folder.plan()["shards"]
    assert shards["features/default/videos"] == open_collection(root).features().video_shards.live()

    events = EventAccumulator(f"{root}/runs/first/metrics").Reload()
    losses = (
        "total",
        "distillation",
        *(f"{b}_{p}" for b in ("inheritance", "exploration") for p in ("triplet", "nce")),
    )
    wanted = {
        *(f"loss/{part}" for part in losses),
        *(f"schedule/{name}" for name in ("distillation", "alpha", "beta")),
        *("lr", "speed/videos_per_s", "speed/step_s", "speed/data_wait_share"),
        *(f"{row}/sumr" for row in ("teacher", "inheritance", "exploration", "fused")),
    }
    assert wanted <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss/total")] == [0, 1, 2]

    begun = time.monotonic()
    assert train(config, root=root, run="first") == summary  # it is finished: nothing is begun again
    assert time.monotonic() - begun < 3


def test_a_run_name_with_other_settings_is_refused_and_the_difference_named(root, tmp_path):
    open_run(root, "taken").declare(settings(tmp_path / "cache"), {})
    with pytest.raises(ValueError, match=r"train\.lr is 0\.002 there, 0\.005 here"):
        train(settings(tmp_path / "cache", lr=5e-3), root=root, run="taken")
    open_run(root, "taken").declare(
        settings(tmp_path / "elsewhere", num_workers=2, checkpoint_steps=7, videos_per_pass=3), {}
    )


def test_a_run_name_with_other_features_is_refused(root, tmp_path):
    shutil.copytree(f"{root}/features/default", f"{root}/features/better")
    open_run(root, "taken").declare(settings(tmp_path / "cache"), TrainingData.of(root, "default").plan)
    with pytest.raises(ValueError, match=r"runs/taken reads the feature set 'default', not 'better'"):
        train(settings(tmp_path / "cache"), root=root, run="taken", features="better")


def test_a_dry_run_counts_and_leaves_nothing(root, tmp_path):
    summary = train(settings(tmp_path / "cache"), root=root, run="dry", dry_run=True)
    assert summary["train"]["videos"] == 20
    assert not Path(root, "runs").exists()


def test_workers_that_no_node_can_hold_are_refused_within_a_minute(root, tmp_path):
    begun = time.monotonic()
    with pytest.raises(ValueError, match="worker"):
        train(settings(tmp_path / "cache", worker_gpus=8), root=root, run="gpus")
    assert time.monotonic() - begun < 60


def test_an_empty_split_names_the_splits_that_there_are(root, tmp_path):
    with pytest.raises(ValueError, match=r"split 'validation' has no query .* splits: .*val"):
        train(settings(tmp_path / "cache", validation_split="validation"), root=root, run="split")
    assert not Path(root, "runs").exists()


def test_what_cannot_be_used_is_counted_and_named(root, tmp_path):
    collection = open_collection(root)
    known = collection.queries("train")["query_id"][0].as_py()
    video = collection.queries("train")["video_ids"][0].as_py()
    queries = [
        {"query_id": "lost", "text": "of a video that nobody has", "video_ids": ["nobody"], "split": "train"},
        {"query_id": "raw", "text": "without features", "video_ids": video, "split": "train"},
        {"query_id": known, "text": "moved away", "video_ids": video, "split": "test"},
    ]
    collection.query_shards.append(pa.Table.from_pylist(queries, schema.QUERIES))
    videos = [{"video_id": name, "split": "train", "added_at": 1.0, "removed": False} for name in ("quiet", "silent")]
    collection.video_shards.append(pa.Table.from_pylist(videos, schema.VIDEOS))
    features = collection.features()
    segment = features.video_shards.scan().slice(0, 1).to_pylist()[0]
    features.video_shards.append(pa.Table.from_pylist([{**segment, "video_id": "silent"}], schema.FEATURE_VIDEOS))
    left_out = train(settings(tmp_path / "cache"), root=root, run="r", dry_run=True)["train"]["left_out"]
    assert left_out["queries whose videos have no features"] == "1: lost"
    assert left_out["queries without features"] == "1: raw"
    assert left_out["videos without features"] == "1: quiet"
    assert left_out["videos without captions"] == "2: silent, v_train_0"  # the one had no caption, the other one only


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_is_named(root, tmp_path):
    with pytest.raises(ValueError, match=r"_(triplet|nce) is (nan|inf|-inf) at epoch \d+, step \d+"):
        train(settings(tmp_path / "cache", lr=1e30, num_epochs=40), root=root, run="nan")


def test_a_plan_pins_what_is_read_but_removals_count(root):
    data = TrainingData.of(root, "default")
    before = data.select("train", only_captioned=True)
    collection = open_collection(root)
    query = collection.queries("train").slice(0, 1).to_pylist()[0]
    collection.query_shards.append(pa.Table.from_pylist([{**query, "split": "test"}], schema.QUERIES))
    assert len(TrainingData.of(root, "default").select("train", only_captioned=True).queries) == len(before.queries) - 1
    assert data.select("train", only_captioned=True).queries.equals(before.queries)
    gone = {"video_id": query["video_ids"][0], "split": "train", "added_at": 1e12, "removed": True}
    collection.video_shards.append(pa.Table.from_pylist([gone], schema.VIDEOS))
    assert data.select("train", only_captioned=True).num_videos == before.num_videos - 1


def test_caches_are_keyed_by_what_decides_their_content(root, tmp_path):
    data = TrainingData.of(root, "default")
    config = settings(tmp_path / "cache")
    train_cache, validation_cache = data.open_caches(config)
    data.open_caches(settings(tmp_path / "cache", lr=1.0))
    assert len(list((tmp_path / "cache").glob("*/"))) == 2
    data.open_caches(settings(tmp_path / "cache", faithful_alignment=True))
    assert len(list((tmp_path / "cache").glob("train-*/"))) == 2
    assert (train_cache.frames.lengths == train_cache.teacher_frames.lengths).all()
    videos = {video.video_id: video for video in data.feature_set().read_videos(data.feature_set().complete())}
    number = validation_cache.video_ids.index("v_val_0")
    teacher_FD, _ = validation_cache.teacher_frames.take(np.array([number]))
    assert (teacher_FD == videos["v_val_0"].teacher).all()  # all frames, raw


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come about")
        time.sleep(0.02)


def num_updates(folder: RunFolder) -> int:
    key = folder.latest_checkpoint()
    return int(key.rpartition("-")[2].partition(".")[0]) if key else 0


def kill_a_worker_after(folder: RunFolder, updates: int) -> threading.Thread:
    """Kill one training worker's process as soon as the run has a checkpoint that late."""

    def work() -> None:
        wait_for(lambda: num_updates(folder) >= updates)
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        workers[-1].send_signal(signal.SIGKILL)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.slow
def test_an_elastic_run_goes_on_with_fewer_workers(root, tmp_path):
    config = settings(tmp_path / "cache", num_workers=4, min_workers=1, worker_cpus=1, num_epochs=4)
    assert train(config, root=root, run="elastic")["epochs"] == 4  # two CPUs: two workers of four


DRIVER = """
import json, sys
from prvr_ray.config import resolve
from prvr_ray.stages.train import train
train(resolve(json.loads(sys.argv[1])), root=sys.argv[2], run=sys.argv[3])
"""


def start_driver(config: Config, root: str, run: str) -> subprocess.Popen:
    """`train` in a process of its own, with a Ray of its own."""
    command = [sys.executable, "-c", DRIVER, json.dumps(config.model_dump(mode="json")), root, run]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_run_on_s3_leaves_the_same_student_as_one_on_a_disk(root, s3_root, tmp_path):
    released(tmp_path / "again", s3_root)
    config = settings(tmp_path / "cache", num_epochs=2, checkpoint_steps=2, worker_cpus=1)
    train(config, root=root, run="r")
    assert start_driver(config, s3_root, "r").wait(300) == 0  # its Ray must know the credentials
    assert final_state(open_run(s3_root, "r")) == final_state(open_run(root, "r"))


@pytest.mark.slow
def test_runs_whose_worker_or_driver_is_killed_end_bit_equal_to_an_uninterrupted_one(root, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "2")  # epochs that last until they are killed
    config = settings(tmp_path / "cache", num_workers=2, worker_cpus=1, num_epochs=12, patience=12, checkpoint_steps=3)
    train(config, root=root, run="whole")
    killer = kill_a_worker_after(open_run(root, "without-worker"), 5)
    train(config, root=root, run="without-worker")
    killer.join()
    assert final_state(open_run(root, "without-worker")) == final_state(open_run(root, "whole"))

    driver = start_driver(config, root, "without-driver")
    wait_for(lambda: num_updates(open_run(root, "without-driver")) >= 5)
    driver.kill()
    driver.wait()
    assert open_run(root, "without-driver").summary() is None
    assert start_driver(config, root, "without-driver").wait(300) == 0
    assert final_state(open_run(root, "without-driver")) == final_state(open_run(root, "whole"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            WorkerGroupError("...", {1: RuntimeError("a trace\nCUDA out of memory. Tried to allocate 2 GiB")}),
            r"max_failures allows: CUDA out of memory.*--train\.videos_per_pass.*again to resume$",
        ),
        (
            ControllerError(RuntimeError("no placement group")),
            r"allows: no placement group\. Run the command again to resume$",
        ),
    ],
)
def test_a_training_that_ray_gives_up_is_a_line_with_the_workers_reason(root, tmp_path, monkeypatch, error, said):
    def give_up(job: object) -> None:
        raise error

    monkeypatch.setattr("prvr_ray.stages.train.run_workers", give_up)
    monkeypatch.setattr("prvr_ray.stages.train.connect", lambda address: contextlib.nullcontext())
    with pytest.raises(ValueError, match=said):
        train(settings(tmp_path / "cache"), root=root, run="a")

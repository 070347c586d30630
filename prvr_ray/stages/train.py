"""`prvr train`: distils a student with Ray Train, on one worker or many, and goes on after any kill.

Checkpoints lie in the run's own folder, each one object; Ray keeps none. So a lost worker, a lost driver and a resized
group all mean the same: workers start and go on from the newest object there.
"""

import contextlib
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer, get_device

from prvr_ray.config import Config, TrainSettings
from prvr_ray.runs import Metrics, RunFolder, open_run
from prvr_ray.stages.progress import Steps
from prvr_ray.stages.resources import Worker, require
from prvr_ray.stages.session import connect
from prvr_ray.stages.training_data import TrainingData
from prvr_ray.student.checkpoints import TrainingState
from prvr_ray.student.model import Student
from prvr_ray.student.training import fit

PREEMPTION_CHECK_STEPS = 10  # the check is a barrier of all workers, some milliseconds; notices come 30 s ahead or more
POLL_S = 1.0


@dataclass(frozen=True)
class Job:
    """What a worker is told. A small value that travels."""

    config: Config
    data: TrainingData
    folder: RunFolder


def train(
    config: Config,
    *,
    root: str,
    run: str,
    features: str = "default",
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train a student, or go on with a run.

    Args:
        config: its sections `student` and `train`.
        root: the collection.
        run: name of the run; its files stand in ROOT/runs/<run>.
        features: name of the feature set.
        address: of a Ray cluster; None: embedded.
        dry_run: only say what would be read.

    Returns:
        What was read, the best epoch's figures beside the teacher's, warnings, and where the run lies.

    Raises:
        ValueError: nothing to train on, a run of that name with other settings or features, or workers that no node
            can hold.
    """
    begun = time.monotonic()
    folder = open_run(root, run)
    data = TrainingData.of(root, features)
    data = data.pinned(folder.plan() or data.plan, folder.store.uri)
    read = {
        "train": data.select(config.train.train_split, only_captioned=True).report(),
        "validation": data.select(config.train.validation_split, only_captioned=False).report(),
    }
    if dry_run:
        return {**read, "output": folder.store.uri}
    folder.declare(config, data.plan)
    done = folder.summary()
    if done is None:
        with connect(address):
            try:
                run_workers(Job(config, data, folder))
            except TrainingFailedError as error:
                raise ValueError(_broken_off(error)) from error
        done = read | _outcome(folder) | {"seconds": round(time.monotonic() - begun, 1), "output": folder.store.uri}
        folder.end(done)
    return done


def load_run(root: str, run: str) -> tuple[Student, Config]:
    """The student of a run's best epoch, on the CPU for inference, and the settings that it was trained with.

    Raises:
        ValueError: there is no such run, or no epoch of it has ended.
    """
    folder = open_run(root, run)
    return folder.load_student(), folder.config()


def run_workers(job: Job, callbacks: Sequence[UserCallback] = ()) -> None:
    """Train on Ray, or go on with the job's run, to its end.

    Args:
        callbacks: of Ray Train; they get each epoch's metrics.

    Raises:
        ValueError: workers that no node can hold, or a training that cannot go on, with its reason.
    """
    settings = job.config.train
    worker = worker_of(settings)
    fewest = settings.min_workers or settings.num_workers
    require(worker, fewest)
    with tempfile.TemporaryDirectory(prefix="prvr-train-") as scratch, _shown_progress(job):
        trainer = TorchTrainer(
            _train_worker,  # type: ignore[arg-type]
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=(fewest, settings.num_workers) if settings.min_workers else fewest,  # type: ignore[arg-type]
                use_gpu=settings.worker_gpus > 0,
                resources_per_worker=worker.bundle,
            ),
            # A new name: Ray is to know nothing of earlier starts, the run's folder does.
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=settings.max_failures),
                callbacks=list(callbacks),  # type: ignore[arg-type]
            ),
        )
        failure = trainer.fit().return_value  # type: ignore[attr-defined]
    if failure:
        raise ValueError(failure)


def worker_of(settings: TrainSettings) -> Worker:
    """What one worker of a training occupies: without settings, an equal share of the present CPUs."""
    if settings.worker_cpus or settings.worker_gpus:
        return Worker("worker", settings.worker_cpus or 1, settings.worker_gpus)
    return Worker("worker", max(1, int(ray.cluster_resources().get("CPU", 1)) // settings.num_workers))


def _train_worker(loop_config: dict[str, Any]) -> str | None:
    """One worker's training. Returns why it cannot go on: an error that another start would only meet again."""
    job: Job = loop_config["job"]
    is_first = ray.train.get_context().get_world_rank() == 0
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    checkpoint = broadcast_from_rank_zero(job.folder.latest_checkpoint())

    def on_epoch(metrics: Metrics, state: TrainingState) -> None:
        if is_first:
            job.folder.put_epoch(metrics, state)
        ray.train.report(metrics)

    def on_step(state: TrainingState) -> None:
        if _is_due(state.progress.num_updates, job.config.train.checkpoint_steps) and is_first:
            job.folder.put_checkpoint(state)

    try:
        fit(
            *job.data.open_caches(job.config),
            job.config.student,
            job.config.train,
            on_epoch=on_epoch,
            on_step=on_step,
            resume=job.folder.store.get(checkpoint) if checkpoint else None,
            device=get_device() if job.config.train.worker_gpus else "cpu",
        )
    except (ValueError, FloatingPointError) as error:
        return str(error)
    return None


def _is_due(num_updates: int, checkpoint_steps: int) -> bool:
    """Whether to checkpoint now: by plan, or because a node is about to be taken away."""
    is_told = num_updates % PREEMPTION_CHECK_STEPS == 0 and ray.train.get_preemption_info() is not None
    return is_told or (checkpoint_steps > 0 and num_updates % checkpoint_steps == 0)


@contextlib.contextmanager
def _shown_progress(job: Job) -> Iterator[None]:
    """Show the epochs as the run's folder gets them."""
    ended = threading.Event()

    def follow() -> None:
        shown = 0
        with Steps("train", job.config.train.num_epochs, "epochs") as steps:
            while not ended.wait(POLL_S):
                try:
                    num_epochs, newest = job.folder.newest_metrics()
                except OSError:  # a store that stays busy: the workers' business, who will say so; here it is shown
                    continue
                if num_epochs > shown:
                    steps.advance(num_epochs - shown, _note(newest))
                    shown = num_epochs

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _note(metrics: Metrics) -> str:
    return (
        f"loss {metrics['loss/total']:.3f}, SumR {metrics['fused/sumr']:.1f} "
        f"(teacher {metrics['teacher/sumr']:.1f}), {metrics['speed/videos_per_s']:.0f} videos/s"
    )


def _broken_off(error: TrainingFailedError) -> str:
    """Why Ray Train has given up, in a line."""
    reasons = getattr(error, "worker_failures", {}).values() or [error]
    said = str(next(iter(reasons))).strip().splitlines()[-1]
    advice = "; --train.videos_per_pass lets a worker encode fewer videos at a time" if "out of memory" in said else ""
    return f"training broke off more often than train.max_failures allows: {said}{advice}. Run it again to go on"


def _outcome(folder: RunFolder) -> dict[str, Any]:
    best = folder.best()
    figures = {row: {"sumr": round(best[f"{row}/sumr"], 2)} for row in ("teacher", "fused")}
    outcome: dict[str, Any] = {"epochs": len(folder.metrics()), "best_epoch": best["epoch"], **figures}
    if best["fused/sumr"] < best["teacher/sumr"]:
        outcome["warning"] = "the student is below its teacher on the validation split"
    return outcome

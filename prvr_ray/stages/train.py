"""`prvr train`: distils a student with Ray Train, on one worker or many, and resumes after any kill.

Checkpoints lie in the run's own folder, one object each; Ray keeps none. So a lost worker, a lost driver and a resized
group are handled alike: workers start, and resume from the latest checkpoint there.
"""

import contextlib
import logging
import os
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
from prvr_ray.devices import choose_device
from prvr_ray.progress import Steps
from prvr_ray.runs.run import Metrics, RunFolder, open_run
from prvr_ray.runs.training_data import TrainingData
from prvr_ray.stages.resources import Worker, require
from prvr_ray.stages.session import connect
from prvr_ray.student.checkpoints import TrainingState
from prvr_ray.student.objective import find_idle_decays
from prvr_ray.student.training import fit, is_untrained
from prvr_ray.worker_errors import raise_told, tell

PREEMPTION_CHECK_STEPS = 10  # the check is a barrier of all workers, some milliseconds; notices come 30 s ahead or more
POLL_S = 1.0
# How often Ray looks for what its workers report, which they wait for: at its default of 2 s no epoch could be shorter.
_REPORT_POLL_S = "0.1"
UNTRAINED = (
    "the best epoch's weights are those that training began with, so nothing was learnt: add training or validation "
    "videos, or train for more epochs"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a training worker needs. A small value that is sent to it."""

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
    """Train a student, or resume a run.

    Args:
        config: its sections `student` and `train`.
        root: the collection.
        run: name of the run; its files lie in ROOT/runs/<run>.
        features: name of the feature set.
        address: of a Ray cluster; None: embedded.
        dry_run: check everything and report what would be read; train nothing.

    Returns:
        What was read, the best epoch's figures beside the teacher's, warnings, and where the run lies.

    Raises:
        ValueError: nothing to train on, a run of that name with other settings or features, or workers that no node
            can hold.
    """
    begun = time.monotonic()
    folder, now = open_run(root, run), TrainingData.of(root, features)
    data = now.pinned(folder.plan() or now.plan, folder.store.uri)
    config = data.settle(config)
    folder.check(config)
    if done := folder.summary():
        return done | _note_changes(data, now, config)
    validation = data.select(config.train.validation_split, only_captioned=False)
    read = {
        "train": data.select(config.train.train_split, only_captioned=True).report(),
        "validation": validation.report(),
    }
    warnings = list(
        filter(None, [validation.warn_if_small(config.train.validation_split), warn_of_decays(config.train)])
    )
    if dry_run:
        return {**read, **_join_warnings(warnings), **_note_changes(data, now, config), "output": folder.store.uri}
    for warning in warnings:
        logger.warning("%s", warning)
    folder.declare(config, data.plan)
    with connect(address):
        try:
            run_workers(Job(config, data, folder))
        except TrainingFailedError as error:
            raise ValueError(_explain_failure(error)) from error
    done = read | _outcome(folder, warnings) | {"seconds": round(time.monotonic() - begun, 1)}
    done["output"] = folder.store.uri
    folder.end(done)
    return done | _note_changes(data, now, config)


def run_workers(job: Job, callbacks: Sequence[UserCallback] = ()) -> None:
    """Train on Ray to the end of the run, or resume it.

    Args:
        callbacks: of Ray Train; they get each epoch's metrics.

    Raises:
        ValueError: workers that no node can hold, or a training that cannot continue, with the reason.
    """
    settings = job.config.train
    worker = size_worker(settings)
    fewest = settings.min_workers or settings.num_workers
    require(worker, fewest)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _REPORT_POLL_S)
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
    raise_told(failure)


def size_worker(settings: TrainSettings) -> Worker:
    """The resources of one training worker: without settings, an equal part of the CPUs that are there."""
    if settings.worker_cpus or settings.worker_gpus:
        return Worker("worker", settings.worker_cpus or 1, settings.worker_gpus)
    return Worker("worker", max(1, int(ray.cluster_resources().get("CPU", 1)) // settings.num_workers))


def _train_worker(loop_config: dict[str, Any]) -> str | None:
    """Train on one worker. Tells why it cannot continue, where a restart would meet the same error again."""
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

    def train_on() -> None:
        fit(
            *job.data.open_caches(job.config),
            job.config.student,
            job.config.train,
            on_epoch=on_epoch,
            on_step=on_step,
            resume=job.folder.store.get(checkpoint) if checkpoint else None,
            device=get_device() if choose_device(job.config.train.worker_gpus) == "cuda" else "cpu",
        )

    return tell(train_on, errors=(ValueError, FloatingPointError))


def _is_due(num_updates: int, checkpoint_steps: int) -> bool:
    """Whether to checkpoint now: it is due, or a node is about to be taken away."""
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
                except OSError:  # the store is busy: the workers report that; this thread only shows progress
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


def _explain_failure(error: TrainingFailedError) -> str:
    """Why Ray Train gave up, in one line."""
    reasons = getattr(error, "worker_failures", {}).values() or [error]
    said = str(next(iter(reasons))).strip().splitlines()[-1]
    advice = "; --train.videos_per_pass lets a worker encode fewer videos at a time" if "out of memory" in said else ""
    return f"training failed more often than train.max_failures allows: {said}{advice}. Run the command again to resume"


def _outcome(folder: RunFolder, warnings: list[str]) -> dict[str, Any]:
    """The results of a run that has ended. exit_code is 1 where nothing was learnt."""
    best = folder.best()
    figures = {row: {"sumr": round(best[f"{row}/sumr"], 2)} for row in ("teacher", "fused")}
    outcome: dict[str, Any] = {"epochs": len(folder.metrics()), "best_epoch": best["epoch"], **figures}
    said = list(warnings)
    if best["fused/sumr"] < best["teacher/sumr"]:
        said.append("the student is below its teacher on the validation split")
    if is_untrained(folder.load_student(), folder.config().train):
        said.append(UNTRAINED)
        outcome["exit_code"] = 1
    return outcome | _join_warnings(said)


def _join_warnings(warnings: list[str]) -> dict[str, str]:
    return {"warning": "; ".join(warnings)} if warnings else {}


def _note_changes(data: TrainingData, now: TrainingData, config: Config) -> dict[str, str]:
    """Note that a run which began earlier does not read what has been added since."""
    try:
        changes = data.describe_changes(now, config)
    except (ValueError, OSError) as error:  # shards of an old plan may be gone, and a split may have become empty
        changes = str(error)
    if not changes:
        return {}
    return {
        "note": f"the data has changed since this run began, which reads what there was then ({changes}); to train on "
        "what there is now, give --run another name"
    }


def warn_of_decays(settings: TrainSettings) -> str:
    """What to do about decays that hardly move in a run of this length; empty where all do."""
    idle = find_idle_decays(settings)
    if not idle:
        return ""
    return (
        f"in {settings.num_epochs} epochs {', '.join(idle)}; --train.schedule_unit run stretches the decays to the "
        f"length of the run"
    )

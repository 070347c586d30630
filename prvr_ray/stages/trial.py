"""What a trial of `prvr tune` and `prvr ablate` does: train one configuration on the node's feature cache.

A trial's folder is a run's folder (`prvr_ray.runs.run`): its checkpoint is used like any other, and an interrupted
trial resumes from it. A trial of several workers starts them with Ray Train.
"""

from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.tune.integration.ray_train import TuneReportCallback

from prvr_ray.config import Config
from prvr_ray.devices import choose_device
from prvr_ray.retrieval.metrics import summarize
from prvr_ray.runs.run import Metrics, RunFolder
from prvr_ray.runs.training_data import TrainingData
from prvr_ray.stages.resources import Worker, count_room, has_autoscaler, require
from prvr_ray.stages.train import Job, run_workers, size_worker
from prvr_ray.stages.trial_runner import Report, to_report
from prvr_ray.storage import Store, get_json, open_store
from prvr_ray.student.batching import BatchReader
from prvr_ray.student.checkpoints import TrainingState
from prvr_ray.student.exchange import Exchange
from prvr_ray.student.training import fit
from prvr_ray.student.validation import Validation
from prvr_ray.tuning.query_ranks import put_ranks

_COORDINATOR = Worker("trial", cpus=0.0, memory=2**29)  # of a trial of several workers: it only waits for them


@dataclass(frozen=True)
class Training:
    """The objective of a real study.

    test_split: where the best epoch is measured at the end, as `test` of the outcome; None: nowhere.
    keeps_ranks: keep the ranks of every query of both splits, for intervals over seeds and videos.
    """

    data: TrainingData
    test_split: str | None = None
    keeps_ranks: bool = False

    def __call__(self, config: Config, folder: str, report: Report) -> dict[str, Any]:
        run = RunFolder(open_store(folder))
        for metrics in run.metrics():
            report(*_progress(metrics))
        if config.train.num_workers > 1:
            run_workers(Job(config, self.data, run), callbacks=[_ToTune()])
        else:
            self._train_here(config, run, report)
        best = run.best()
        outcome = {"checkpoint": f"{folder}/{best['weights']}"}
        if self.keeps_ranks:
            self._measure(config, run, config.train.validation_split, "validation")
        return outcome | ({"test": self._measure(config, run, self.test_split, "test")} if self.test_split else {})

    def _train_here(self, config: Config, run: RunFolder, report: Report) -> None:
        def on_epoch(metrics: Metrics, state: TrainingState) -> None:
            run.put_epoch(metrics, state)
            report(*_progress(metrics))

        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
        checkpoint = run.latest_checkpoint()
        fit(
            *self.data.open_caches(config),
            config.student,
            config.train,
            on_epoch=on_epoch,
            resume=run.store.get(checkpoint) if checkpoint else None,
            device=choose_device(config.tune.trial_gpus),
        )

    def _measure(self, config: Config, run: RunFolder, split: str, role: str) -> float:
        """SumR of the best epoch on a split, both branches fused. role: validation or test, the name its ranks have."""
        # The coordinator of a group of workers has no GPU of its own.
        device = choose_device(config.tune.trial_gpus if config.train.num_workers == 1 else 0)
        cache = self.data.open_cache(config, split)
        evaluation = Validation(BatchReader(cache, device=device), config.student, Exchange())
        ranks = evaluation.ranks(run.load_student().to(device))["fused"]
        if self.keeps_ranks:
            put_ranks(run.store, role, cache.query_ids, cache.first_videos(), ranks)
        return summarize(ranks)["sumr"]


def check_splits(data: TrainingData, config: Config) -> str | None:
    """Check the splits before anything is trained; the split to report once, None where it has nothing.

    Raises:
        ValueError: nothing to train or to validate on.
    """
    data.select(config.train.train_split, only_captioned=True)
    data.select(config.train.validation_split, only_captioned=False)
    queries = data.feature_set().collection.queries(config.tune.test_split)
    return config.tune.test_split if len(queries) else None


def pin_data(data: TrainingData, store: Store) -> TrainingData:
    """The data as the first call of a study pinned it; nothing is put.

    Raises:
        ValueError: that call read another feature set, or this one when it had other encoders.
    """
    try:
        plan = get_json(store, "plan.json")
    except FileNotFoundError:
        return data
    return data.pinned(plan, store.uri)


def check_trials(config: Config) -> None:
    """Check what can be known of the trials without a cluster.

    Raises:
        ValueError: a population of trials of several workers.
    """
    if config.tune.scheduler == "pbt" and config.train.num_workers > 1:
        raise ValueError("tune.scheduler=pbt needs trials of one process; set train.num_workers to 1")


def size_trial_worker(config: Config) -> tuple[Worker, int]:
    """What one trial occupies, and how many may run at a time (0: as many as there is room for).

    A trial of several workers holds no CPU itself. No more of them start than their workers have room for together,
    on the present nodes or, where the user says how many, on those that the autoscaler can bring: groups of which none
    is whole would wait for each other for ever.

    Raises:
        ValueError: no node can give it.
    """
    settings = config.tune
    if config.train.num_workers == 1:
        worker = Worker("trial", settings.trial_cpus, settings.trial_gpus)
        require(worker)
        return worker, settings.max_concurrent
    worker = size_worker(config.train)
    if settings.max_concurrent and has_autoscaler():
        try:
            require(worker, settings.max_concurrent * config.train.num_workers)
        except ValueError as error:
            raise ValueError(f"{error}, or lower tune.max_concurrent={settings.max_concurrent}") from None
        return _COORDINATOR, settings.max_concurrent
    require(worker, config.train.num_workers)
    groups = max(1, count_room(worker) // config.train.num_workers)
    return _COORDINATOR, min(groups, settings.max_concurrent or groups)


class _ToTune(TuneReportCallback):
    """Hands the epochs of a group of workers to the trial that started it."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        super().after_report(run_context, [to_report(*_progress(metrics[0]))], None)


def _progress(metrics: Metrics) -> tuple[int, float]:
    """Epochs done, and the validation SumR after them."""
    return int(metrics["epoch"]) + 1, metrics["fused/sumr"]

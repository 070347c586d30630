"""Runs trials with Ray Tune and keeps a record of each in storage (`prvr_ray.tuning.records`).

Ray Tune's own files are thrown away: whoever resumes reads the records, and nothing is unpickled. Which points are
tried, and what the figures mean, is for `prvr_ray.tuning` and the stages that use this one.
"""

import contextlib
import logging
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from ray import tune
from ray.train import TrainingFailedError
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from prvr_ray.config import Config
from prvr_ray.progress import Steps
from prvr_ray.stages.resources import Worker
from prvr_ray.storage import Store, open_store
from prvr_ray.tuning.records import TrialFolder, adopt
from prvr_ray.tuning.seed_comparison import name_run
from prvr_ray.tuning.space import Point
from prvr_ray.tuning.study import list_seeds
from prvr_ray.tuning.trial import PlannedTrial, Trial

Report = Callable[[int, float], None]  # epoch, from 1, and its validation SumR

_RESTARTS = 2  # of a trial whose process died or whose storage failed
_POPULATION = "population"
_POINTER = "folder.txt"  # all that our Ray checkpoints hold: whose folder to resume from
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files that nobody reads
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command: the records in storage are enough to resume
}


class Objective(Protocol):
    """Trains one configuration. Travels to other processes, so it holds plain values."""

    def __call__(self, config: Config, folder: str, report: Report) -> dict[str, Any]:
        """Train, call `report` after every epoch, and return what the record shall hold, as JSON values.

        Args:
            folder: URI of the trial's own folder. The objective resumes from what an earlier attempt left there.
            report: does not return if the trial is to stop. Epochs that an earlier attempt did are reported again.
        """


@dataclass(frozen=True)
class Runner:
    """How trials are run: what each does, on what, how many at a time, and the configuration around them.

    run: runs trials until each has its record; None: `run_trials`, on Ray Tune. It takes this and that one's arguments.
    """

    base: Config
    objective: Objective
    worker: Worker
    max_concurrent: int = 0
    run: Callable[..., None] | None = None

    def __call__(self, **arguments: Any) -> None:
        """Run trials; see `run_trials` for the arguments."""
        (self.run or run_trials)(self, **arguments)


def run_trials(
    runner: Runner,
    *,
    folder: TrialFolder,
    names: list[str],
    suggest: Callable[[str], Point],
    steps: Steps,
    scheduler: TrialScheduler | None = None,
    on_end: Callable[[Trial], None] = lambda trial: None,
) -> None:
    """Run trials until each has its record.

    Args:
        folder: holds the records.
        names: the trials to run, in this order.
        suggest: name -> point, called when there is room for the trial; of a population, for all at once.
        steps: told of every trial that ends.
        scheduler: stops trials early, or trains a population; None: all are trained to their end.
        on_end: called after a record is put.

    Raises:
        RuntimeError: a trial has no record, for storage refused it.
    """
    if not names:
        return
    _quieten_tune()
    recorder = _Recorder(folder, steps, on_end)
    is_population = isinstance(scheduler, PopulationBasedTraining)
    one = tune.with_parameters(_train_one, objective=runner.objective, folder=folder, is_population=is_population)

    def plan(name: str) -> PlannedTrial:
        return PlannedTrial.plan(name, suggest(name), runner.base)

    with _scratch(folder, is_population) as scratch:
        tune.Tuner(
            tune.with_resources(one, tune.PlacementGroupFactory([runner.worker.bundle])),
            **_population(names, plan) if is_population else {},
            tune_config=tune.TuneConfig(
                search_alg=None if is_population else _Suggestions(names, plan),
                scheduler=scheduler or FIFOScheduler(),
                num_samples=1 if is_population else len(names),
                max_concurrent_trials=runner.max_concurrent or None,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                callbacks=[recorder],
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                verbose=0,
            ),
        ).fit()
    missing = sorted(set(names) - recorder.ended)
    if missing:
        raise RuntimeError(f"{folder.store.uri} took no record of trials {missing}; the same command tries them again")


def _quieten_tune() -> None:
    """Keep Ray Tune's own files and messages away from the user: records and progress say what there is to say."""
    os.environ.update(_TUNE_SETTINGS)
    for name in ("analysis.experiment_analysis", "execution.tune_controller"):
        # The first misses the loggers' files; the second prints a traceback of each lost process: records have both.
        logging.getLogger(f"ray.tune.{name}").setLevel(logging.CRITICAL)
    for name in ("schedulers.pbt", "tune"):  # each take-over, and where Ray Tune kept its files
        logging.getLogger(f"ray.tune.{name}").setLevel(logging.WARNING)


def _population(names: list[str], plan: Callable[[str], PlannedTrial]) -> dict[str, Any]:
    """Ray Tune trains a population only where it knows all members at once."""
    return {"param_space": {"trial": tune.grid_search([plan(name).values["trial"] for name in names])}}


@contextlib.contextmanager
def _scratch(folder: TrialFolder, is_population: bool) -> Iterator[str]:
    """The folder for Ray Tune's own files: in storage for a population, whose nodes share pointers there."""
    if not is_population:
        with tempfile.TemporaryDirectory(prefix="prvr-tune-") as path:
            yield path
        return
    try:
        yield _as_uri(folder.store.child(_POPULATION).uri)
    finally:
        for item in folder.store.list(f"{_POPULATION}/"):
            folder.store.delete(item.key)


def _as_uri(place: str) -> str:
    """A place in a form that Ray reads as that place: it takes what is not a local path for a percent-encoded URI.

    Unquoted, `s3://bucket/data#1` lands in `s3://bucket/data`, outside ROOT.
    """
    return quote(place, safe=":/@") if "://" in place else place


def to_report(epoch: int, sumr: float) -> dict[str, Any]:
    """One report of a trial, as schedulers and the recorder read it."""
    return {"epoch": epoch, "sumr": sumr}


def _train_one(values: dict[str, Any], *, objective: Objective, folder: TrialFolder, is_population: bool) -> None:
    """One trial, in its own process."""
    trial: PlannedTrial = values["trial"]["planned"]
    if trial.config is None:
        tune.report({"sumr": math.nan, "failure": trial.refusal})
        return
    mine = folder.uri(tune.get_context().get_trial_name())
    last = math.nan
    _take_over(mine)

    def report(epoch: int, sumr: float) -> None:
        nonlocal last
        last = sumr
        with tempfile.TemporaryDirectory() as scratch:
            Path(scratch, _POINTER).write_text(mine)
            checkpoint = tune.Checkpoint.from_directory(scratch) if is_population else None
            tune.report(to_report(epoch, sumr), checkpoint=checkpoint)

    # Any error of one configuration is a finding about it: a record with its reason, and the study continues. What
    # storage, disk or network refuse, or a group of workers that is lost, says nothing about it: Ray Tune starts the
    # trial again where it was.
    try:
        end: dict[str, Any] = {"outcome": objective(trial.config, mine, report)}
    except (OSError, TrainingFailedError):
        raise
    except Exception as error:
        end = {"failure": f"{type(error).__name__}: {error}"}
    tune.report({"sumr": last, **end})  # no epoch: schedulers leave this one alone


def _take_over(mine: str) -> None:
    """Where the population has told this trial to imitate another, put that one's files in place of its own."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as path:
        theirs = Path(path, _POINTER).read_text()
    if theirs != mine:
        adopt(open_store(theirs), open_store(mine))


def _name(trial: RayTrial) -> str:
    name: str = trial.config["trial"]["name"]
    return name


class _Unsaved:
    """Ray Tune saves its driver's state now and then; ours is in storage."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Suggestions(_Unsaved, Searcher):
    """The points of the trials to run, asked for when there is room."""

    def __init__(self, names: list[str], plan: Callable[[str], PlannedTrial]) -> None:
        super().__init__()
        self._names, self._plan = iter(names), plan

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return self._plan(next(self._names)).values  # Ray asks for exactly num_samples trials

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the recorder tells."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""


class _Recorder(_Unsaved, tune.Callback):
    """Puts a record of every trial, and shows the study's progress."""

    def __init__(self, folder: TrialFolder, steps: Steps, on_end: Callable[[Trial], None]) -> None:
        self._folder, self._steps, self._on_end = folder, steps, on_end
        self._curves: dict[str, dict[int, float]] = {}  # of the trials that run
        self._begun: dict[str, float] = {}
        self._states: Counter[str] = Counter()
        self._best: tuple[float, str] = (-1.0, "")
        self.ended: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        name = str(trial)
        planned: PlannedTrial = trial.config["trial"]["planned"]
        if planned.config:
            self._folder.put_start(name, planned.config)
        self._curves.setdefault(name, {})
        self._begun.setdefault(name, time.monotonic())

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" in result:
            self._curves[str(trial)][result["epoch"]] = result["sumr"]
            self._best = max(self._best, (result["sumr"], str(trial)))
            self._steps.advance(0, self._note())

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        last = trial.last_result
        if "outcome" in last:
            self._end(trial, state="finished", outcome=last["outcome"])
        elif "failure" in last:
            self._end(trial, state="failed", reason=last["failure"])
        else:
            self._end(trial, state="stopped")

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        error = str(trial.get_error() or "no reason known").strip().splitlines()[-1]
        self._end(trial, state="failed", reason=f"it broke off {_RESTARTS + 1} times: {error}")

    def _end(self, trial: RayTrial, **ending: Any) -> None:
        name = str(trial)
        now = time.monotonic()  # a trial of which no process ever came up has not begun
        seconds, curve = now - self._begun.pop(name, now), self._curves.pop(name, {})
        ended = Trial(name, trial.config["trial"]["point"], curve=curve, seconds=seconds, **ending)
        self._folder.put_end(ended)
        self.ended.add(name)
        self._states[ended.state] += 1
        self._on_end(ended)
        self._steps.advance(1, self._note())

    def _note(self) -> str:
        best = f", best SumR {self._best[0]:.1f} ({self._best[1]})" if self._best[1] else ""
        ended = "".join(f", {count} {state}" for state, count in sorted(self._states.items()))
        return f"{len(self._curves)} running{ended}{best}"


def run_on_seeds(store: Store, runner: Runner, variants: dict[str, Point], what: str) -> dict[str, Trial]:
    """Train every variant on every seed to its end, or those that have not been; the runs by name."""
    folder = TrialFolder(store)
    ended = folder.ended()
    points = {
        name_run(name, seed): {**point, "train.seed": seed}
        for seed in list_seeds(runner.base)
        for name, point in variants.items()
    }
    names = [name for name in points if name not in ended]
    with Steps(what, len(names), "runs") as steps:
        runner(folder=folder, names=names, suggest=points.__getitem__, steps=steps)
    return folder.ended()

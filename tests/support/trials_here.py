"""Trials one after the other in this process: a study's own steps without starting Ray Tune."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from prvr_ray.progress import Steps
from prvr_ray.stages.trial_runner import Objective, Runner
from prvr_ray.tuning.records import TrialFolder
from prvr_ray.tuning.space import Point
from prvr_ray.tuning.trial import PlannedTrial, Trial


class Stopped(BaseException):
    """The scheduler stops this trial."""


def run_trials_here(
    runner: Runner,
    *,
    folder: TrialFolder,
    names: list[str],
    suggest: Callable[[str], Point],
    steps: Steps,
    scheduler: TrialScheduler | None = None,
    on_end: Callable[[Trial], None] = lambda trial: None,
) -> None:
    """Stands for `prvr_ray.stages.trial_runner.run_trials`. Nothing restarts a trial here."""
    for name in names:
        planned = PlannedTrial.plan(name, suggest(name), runner.base)
        trial = _run(runner.objective, folder, planned, scheduler)
        folder.put_end(trial)
        on_end(trial)
        steps.advance(1)


def _run(
    objective: Objective,
    folder: TrialFolder,
    planned: PlannedTrial,
    scheduler: TrialScheduler | None,
) -> Trial:
    name = planned.name
    if planned.config is None:
        return Trial(name, planned.point, "failed", {}, 0.0, planned.refusal)
    curve: dict[int, float] = {}
    controller: Any = None
    stand_in: Any = SimpleNamespace(trial_id=name)
    if scheduler:
        scheduler.on_trial_add(controller, stand_in)

    def report(epoch: int, sumr: float) -> None:
        curve[epoch] = sumr
        result = {"epoch": epoch, "sumr": sumr}
        if scheduler and scheduler.on_trial_result(controller, stand_in, result) == TrialScheduler.STOP:
            raise Stopped

    begun = time.monotonic()
    ending: dict[str, Any]
    try:
        folder.put_start(name, planned.config)
        ending = {"state": "finished", "outcome": objective(planned.config, folder.uri(name), report)}
    except Stopped:
        ending = {"state": "stopped"}
    except Exception as error:
        ending = {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
    return Trial(name, planned.point, curve=curve, seconds=time.monotonic() - begun, **ending)

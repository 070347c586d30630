"""Schedulers that decide during a search which trials continue: successive halving, a population, or nothing."""

import random
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler

from prvr_ray.config import Config
from prvr_ray.tuning.space import Space, perturb
from prvr_ray.tuning.trial import PlannedTrial, Trial


def make_scheduler(base: Config, space: Space, ended: Iterable[Trial]) -> TrialScheduler | None:
    """The scheduler that the settings ask for; None where every trial is to be trained to its end.

    Args:
        ended: trials of an interrupted study, which the others are compared with.
    """
    settings, num_epochs = base.tune, base.train.num_epochs
    if settings.scheduler == "none" or settings.grace_epochs >= num_epochs:
        return None
    if settings.scheduler == "pbt":
        return _population_scheduler(base, space)
    return _halving(num_epochs, settings.grace_epochs, settings.reduction_factor, ended)


def _halving(num_epochs: int, grace_epochs: int, reduction_factor: int, ended: Iterable[Trial]) -> ASHAScheduler:
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="sumr",
        mode="max",
        max_t=num_epochs - 1,  # no rung at the last epoch: a trial that came so far has finished
        grace_period=grace_epochs,
        reduction_factor=reduction_factor,
        stop_last_trials=False,
    )
    controller: Any = None  # that of the interrupted study is gone
    for trial in ended:
        stand_in: Any = SimpleNamespace(trial_id=trial.name)
        scheduler.on_trial_add(controller, stand_in)
        for epoch, sumr in sorted(trial.curve.items()):
            scheduler.on_trial_result(controller, stand_in, {"epoch": epoch, "sumr": sumr})
    return scheduler


def _population_scheduler(base: Config, space: Space) -> PopulationBasedTraining:
    generator = random.Random(base.tune.seed)

    def explore(values: dict[str, Any]) -> dict[str, Any]:
        trial = values["trial"]
        return PlannedTrial.plan(trial["name"], perturb(space, trial["point"], generator), base).values

    return PopulationBasedTraining(
        time_attr="epoch",
        metric="sumr",
        mode="max",
        perturbation_interval=base.tune.grace_epochs,
        custom_explore_fn=explore,
        require_attrs=False,  # a trial's last report has no epoch
    )

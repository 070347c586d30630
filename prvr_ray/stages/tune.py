"""`prvr tune`: searches for better settings with Ray Tune, and confirms on several seeds that they are better."""

import time
from typing import Any

from prvr_ray.config import Config
from prvr_ray.progress import Steps
from prvr_ray.runs.training_data import TrainingData
from prvr_ray.stages.session import connect
from prvr_ray.stages.trial import Training, check_splits, check_trials, pin_data, size_trial_worker
from prvr_ray.stages.trial_runner import Runner, run_on_seeds
from prvr_ray.stages.trial_schedulers import make_scheduler
from prvr_ray.storage import Store, put_json_if_absent
from prvr_ray.tuning.query_ranks import read_queries_in
from prvr_ray.tuning.records import TrialFolder
from prvr_ray.tuning.sampler import Sampler
from prvr_ray.tuning.seed_comparison import BASE, Row, adjust_confidence, compare
from prvr_ray.tuning.space import Point
from prvr_ray.tuning.study import BASE_TRIAL, Study, list_seeds, name_trial, open_study, rank_trials
from prvr_ray.tuning.trial import Trial

_LEADERS = 9  # trials in the summary, beside the base


def tune(
    config: Config,
    *,
    root: str,
    study: str,
    features: str = "default",
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run a study, or resume it.

    Args:
        config: `student` and `train` are the base configuration; `tune` says what varies, and how trials run.
        root: the collection.
        study: name of the study; its files lie in ROOT/tune/<study>.
        features: name of the feature set.
        address: of a Ray cluster; None: embedded.
        dry_run: check everything and report what would be run; run nothing.

    Returns:
        The verdict, the best trials, the table of the confirmation, how many trials ended how, why some failed, and
        where the study lies. exit_code is 1 where no trial finished.

    Raises:
        ValueError: an unusable space, a study of that name with other settings, nothing to train on, or trials that no
            node can hold.
    """
    begun = time.monotonic()
    store = open_study(root, study)
    data = pin_data(TrainingData.of(root, features), store)
    config = data.settle(config)
    planned = Study.plan(store, config)
    test_split = check_splits(data, config)
    check_trials(config)
    if dry_run:
        return _what_would_run(store, config)
    planned.declare()
    put_json_if_absent(store, "plan.json", data.plan)
    with connect(address):
        worker, max_concurrent = size_trial_worker(config)
        trials = search(planned, Runner(config, Training(data), worker, max_concurrent))
        measured = Runner(config, Training(data, test_split, keeps_ranks=True), worker, max_concurrent)
        rows = (
            confirm(planned, measured, trials)
            if rank_trials(trials, config.tune.confirm_top, config.train.num_epochs)
            else []
        )
    summary = planned.conclude(trials, rows)
    return {
        **{key: summary[key] for key in ("verdict", "best", "states", "importance", "proof", "interval_confidence")},
        "leaders": _leaders(trials, config.train.num_epochs),
        "failures": {name: trial.reason for name, trial in sorted(trials.items()) if trial.state == "failed"},
        "seconds": round(time.monotonic() - begun, 1),
        "output": store.uri,
        "exit_code": 0 if summary["states"].get("finished") else 1,
    }


def search(study: Study, runner: Runner) -> dict[str, Trial]:
    """Run the search, or what is left of it.

    Returns:
        The trials, by name.
    """
    settings = study.base.tune
    folder = TrialFolder(study.store.child("trials"))
    ended, interrupted = folder.ended(), folder.interrupted(list(study.space))
    sampler = Sampler(study.space, settings.sampler, settings.seed, list(ended.values()))
    known = [*interrupted.values(), *(trial.point for trial in ended.values())]
    waiting = iter([point for point in study.first_points if point not in known])

    def suggest(name: str) -> Point:
        point = interrupted.get(name) or next(waiting, None)
        return sampler.take(name, point) if point else sampler.suggest(name)

    names = [name for name in map(name_trial, range(settings.num_trials)) if name not in ended]
    with Steps("tune", len(names), "trials") as steps:
        runner(
            folder=folder,
            names=names,
            suggest=suggest,
            steps=steps,
            scheduler=make_scheduler(study.base, study.space, ended.values()),
            on_end=sampler.tell,
        )
    return folder.ended()


def confirm(study: Study, runner: Runner, trials: dict[str, Trial]) -> list[Row]:
    """Train the base and the best trials again on several seeds; the base's row first."""
    settings = study.base.tune
    candidates = {
        f"trial-{trial.name}": trial.point
        for trial in rank_trials(trials, settings.confirm_top, study.base.train.num_epochs)
    }
    variants = {BASE: Point(), **candidates}
    store = study.store.child("proof")
    runs = run_on_seeds(store, runner, variants, "confirm")
    confidence = adjust_confidence(settings.confidence, len(candidates))
    return compare(variants, list_seeds(study.base), runs, BASE, confidence, read_queries_in(store))


def _leaders(trials: dict[str, Trial], num_epochs: int) -> list[dict[str, Any]]:
    """The best trials, best first, then the base."""
    shown = [*rank_trials(trials, _LEADERS, num_epochs), *([trials[BASE_TRIAL]] if trials[BASE_TRIAL].curve else [])]
    return [
        {"name": trial.name, "state": trial.state, "epochs": len(trial.curve), "best": trial.best, "point": trial.point}
        for trial in shown
    ]


def _what_would_run(store: Store, config: Config) -> dict[str, Any]:
    settings = config.tune
    ended = TrialFolder(store.child("trials")).ended()
    runs = (settings.confirm_top + 1) * settings.num_seeds if settings.confirm_top else 0
    return {
        "trials": {"ended": len(ended), "to_run": max(0, settings.num_trials - len(ended))},
        "proof_runs": runs,
        "epochs_at_most": (settings.num_trials + runs) * config.train.num_epochs,
        "output": store.uri,
    }

"""`prvr tune`: searches for better settings with Ray Tune, and proves on seeds that they are better."""

import time
from typing import Any

from prvr_ray.config import Config
from prvr_ray.stages.session import connect
from prvr_ray.stages.study import (
    BASE_TRIAL,
    Runner,
    best_trials,
    conclude,
    declare,
    first_points,
    open_study,
    prove,
    search,
)
from prvr_ray.stages.training_data import TrainingData
from prvr_ray.stages.trial_folder import TrialFolder
from prvr_ray.stages.trial_training import Training, check_splits, trial_worker
from prvr_ray.storage import Store, put_json_if_absent
from prvr_ray.tuning.space import parse_space
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
    """Run a study, or go on with it.

    Args:
        config: `student` and `train` are the base configuration; `tune` says what varies, and how trials run.
        root: the collection.
        study: name of the study; its files stand in ROOT/tune/<study>.
        features: name of the feature set.
        address: of a Ray cluster; None: embedded.
        dry_run: only say what would be run.

    Returns:
        What was found, the best trials, the table of the proof, how many trials ended how and why some failed, and
        where the study lies. exit_code is 1 where no trial finished.

    Raises:
        ValueError: an unusable space, a study of that name with other settings, nothing to train on, or trials that no
            node can hold.
    """
    begun = time.monotonic()
    store = open_study(root, study)
    first_points(parse_space(config.tune.space, config), config)
    data = TrainingData.of(root, features)
    test_split = check_splits(data, config)
    if dry_run:
        return _what_would_run(store, config)
    declare(store, config)
    data = data.pinned(put_json_if_absent(store, "plan.json", data.plan), store.uri)
    with connect(address):
        worker, max_concurrent = trial_worker(config)
        trials = search(store, Runner(config, Training(data), worker, max_concurrent))
        measured = Runner(config, Training(data, test_split), worker, max_concurrent)
        rows = prove(store, measured, trials) if best_trials(trials, config.tune.confirm_top) else []
    summary = conclude(store, config, trials, rows)
    return {
        **{key: summary[key] for key in ("verdict", "best", "states", "importance", "proof", "interval_confidence")},
        "leaders": _leaders(trials),
        "failures": {name: trial.reason for name, trial in sorted(trials.items()) if trial.state == "failed"},
        "seconds": round(time.monotonic() - begun, 1),
        "output": store.uri,
        "exit_code": 0 if summary["states"].get("finished") else 1,
    }


def _leaders(trials: dict[str, Trial]) -> list[dict[str, Any]]:
    """The best trials, best first, then the base."""
    shown = [*best_trials(trials, _LEADERS), *([trials[BASE_TRIAL]] if trials[BASE_TRIAL].curve else [])]
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

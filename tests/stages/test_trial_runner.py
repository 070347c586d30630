"""A trial's process and the records of its driver, called as Ray Tune calls them: an attempt, then another. No Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import TrainingFailedError

from prvr_ray.config import Config
from prvr_ray.progress import Steps
from prvr_ray.stages import trial_runner
from prvr_ray.stages.trial_runner import Report
from prvr_ray.storage import open_store
from prvr_ray.tuning.records import TrialFolder
from prvr_ray.tuning.trial import PlannedTrial


class TuneTrial:
    """What the recorder reads of a trial of Ray Tune."""

    def __init__(self, planned: PlannedTrial) -> None:
        self.config = planned.values
        self.last_result: dict[str, Any] = {}

    def __str__(self) -> str:
        return self.config["trial"]["name"]


class Breaking:
    """Trains three epochs, of which an attempt does again what the one before did; attempts after `errors` succeed."""

    def __init__(self, errors: list[Exception]) -> None:
        self.errors, self.num_attempts = errors, 0

    def __call__(self, config: Config, folder: str, report: Report) -> dict[str, Any]:
        self.num_attempts += 1
        report(1, 10.0)
        if self.errors:
            raise self.errors.pop(0)
        report(2, 20.0)
        report(3, 15.0)
        return {"test": 14.0}


def run_as_tune_does(monkeypatch: pytest.MonkeyPatch, root: Path, objective: Breaking) -> dict[str, Any]:
    """Start one trial until an attempt ends without an error, as often as `_RESTARTS` allows; returns its record."""
    planned = PlannedTrial.plan("0000", {}, Config())
    folder, trial, ended = TrialFolder(open_store(root)), TuneTrial(planned), []
    with Steps("tune", 1, "trials") as steps:
        recorder = trial_runner._Recorder(folder, steps, ended.append)
        monkeypatch.setattr(trial_runner, "tune", tune_here(recorder, trial))
        for _ in range(trial_runner._RESTARTS + 1):
            recorder.on_trial_start(0, [trial], trial)
            try:
                trial_runner._train_one(trial.config, objective=objective, folder=folder, is_population=False)
            except Exception:  # Ray Tune starts it again, whatever it was
                continue
            recorder.on_trial_complete(0, [trial], trial)
            break
    assert len(ended) <= 1
    return {name: ended.to_json() for name, ended in folder.ended().items()}["0000"]


def tune_here(recorder: Any, trial: TuneTrial) -> Any:
    def report(result: dict[str, Any], checkpoint: None = None) -> None:
        trial.last_result = result
        recorder.on_trial_result(0, [trial], trial, result)

    context = SimpleNamespace(get_trial_name=lambda: str(trial))
    return SimpleNamespace(report=report, get_context=lambda: context, get_checkpoint=lambda: None)


@pytest.mark.parametrize("error", [OSError("the disk is\nfull"), TrainingFailedError("no node is left")])
def test_a_trial_that_storage_or_nodes_broke_off_is_run_again_to_its_end(monkeypatch, tmp_path, error) -> None:
    objective = Breaking([error, error])
    record = run_as_tune_does(monkeypatch, tmp_path, objective)
    assert objective.num_attempts == 3
    assert (record["state"], record["reason"], record["outcome"]) == ("finished", None, {"test": 14.0})
    assert (record["curve"], record["best"]) == ({"1": 10.0, "2": 20.0, "3": 15.0}, 20.0)


def test_any_other_error_is_a_finding_about_the_configuration(monkeypatch, tmp_path) -> None:
    objective = Breaking([FloatingPointError("loss is nan")])
    record = run_as_tune_does(monkeypatch, tmp_path, objective)
    assert objective.num_attempts == 1
    assert (record["state"], record["reason"]) == ("failed", "FloatingPointError: loss is nan")
    assert (record["curve"], record["outcome"]) == ({"1": 10.0}, {})

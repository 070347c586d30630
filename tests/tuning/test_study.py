"""A study of an earlier version goes on: settings that it did not know had their defaults and did not vary."""

import pytest

from prvr_ray.config import DEFAULT_SPACE, Config, resolve
from prvr_ray.storage import open_store, put_json
from prvr_ray.tuning.study import Study, rank_trials
from prvr_ray.tuning.trial import PlannedTrial, Trial

NEWER = ("train.schedule_unit", "train.sigmoid_k", "train.alpha_decay_rate", "train.distillation")


def older_spec(base: Config, folder) -> dict:
    spec = Study.plan(open_store(folder / "unused"), base).spec
    known = {path: value for path, value in spec["base"].items() if path not in NEWER}
    space = {path: rule for path, rule in spec["space"].items() if path not in NEWER}
    return {"format_version": 1, **spec, "base": known, "space": space}


def test_a_study_of_an_earlier_version_keeps_its_space(tmp_path):
    base, store = Config(), open_store(tmp_path / "study")
    put_json(store, "spec.json", older_spec(base, tmp_path))
    study = Study.plan(store, base)
    assert set(DEFAULT_SPACE) - set(study.space) == set(NEWER)
    study.declare()
    with pytest.raises(ValueError, match=r"base\.train\.schedule_unit is 'epochs' there, 'run' here"):
        Study.plan(store, resolve({"train": {"schedule_unit": "run"}}))
    wider = {**older_spec(base, tmp_path)["space"], "train.sigmoid_k": {"uniform": [300, 900]}}
    with pytest.raises(ValueError, match=r"space\.train\.sigmoid_k is None there"):
        Study.plan(store, resolve({"tune": {"space": wider}}))


def test_a_planned_trial_carries_its_configuration_or_why_there_is_none():
    good = PlannedTrial.plan("0001", {"train.lr": 1e-3}, Config())
    assert good.config is not None
    assert (good.config.train.lr, good.refusal) == (1e-3, None)
    bad = PlannedTrial.plan("0002", {"student.num_heads": 5}, Config())
    assert bad.config is None
    assert "num_heads=5 does not divide hidden_dim=384" in str(bad.refusal)


def ended(name: str, state: str, curve: dict[int, float]) -> Trial:
    return Trial(name, {}, state, curve, 1.0)


def test_a_trial_that_patience_ended_ranks_below_stopped_ones_with_better_curves():
    trials = [
        ended("0001", "finished", {1: 10.0, 9: 70.0}),
        ended("0002", "finished", {1: 50.0, 4: 49.0}),  # patience ended it
        ended("0003", "stopped", {1: 40.0, 3: 60.0}),
        ended("0004", "stopped", {1: 30.0}),
    ]
    ranked = rank_trials({trial.name: trial for trial in trials}, 9, 9)
    assert [trial.name for trial in ranked] == ["0001", "0003", "0002", "0004"]

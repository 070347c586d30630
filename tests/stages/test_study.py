"""A study searches, records, stops, survives kills and confirms, on learning curves that are formulas."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
import yaml
from ray.train import TrainingFailedError
from ray.tune.impl.placeholder import create_resolvers_map, inject_placeholders
from support.trials_here import run_trials_here

from benchmarks.learning_curves import OPTIMUM, PEAK, SPACE, LearningCurve, final_sumr, point_at
from prvr_ray import progress
from prvr_ray.config import Config, resolve
from prvr_ray.runs.run import settings_to_yaml
from prvr_ray.stages.resources import Worker
from prvr_ray.stages.trial_runner import Report, Runner, _population, _Recorder
from prvr_ray.stages.tune import confirm, search
from prvr_ray.storage import get_json, open_store, put_json
from prvr_ray.tuning.records import TrialFolder
from prvr_ray.tuning.space import apply_point
from prvr_ray.tuning.study import Study, list_seeds, open_study, rank_trials
from prvr_ray.tuning.trial import PlannedTrial, Trial

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

EPOCHS = 9
ONE_CPU = Worker("trial", 1.0)


def base_of(**tune: Any) -> Config:
    settings = {"num_trials": 8, "grace_epochs": 1, "num_seeds": 3, "confirm_top": 1, "space": SPACE, **tune}
    return resolve({"train": {"num_epochs": EPOCHS}, "tune": settings})


def here(base: Config, objective: Any) -> Runner:
    """Trials one after the other, in this process."""
    return Runner(base, objective, ONE_CPU, run=run_trials_here)


def studied(root: Path, base: Config, objective: Any) -> tuple[dict[str, Trial], dict[str, Any]]:
    study = Study.plan(open_study(str(root), "study"), base)
    study.declare()
    runner = here(base, objective)
    trials = search(study, runner)
    return trials, study.conclude(trials, confirm(study, runner, trials))


def searched(store: Any, base: Config, objective: Any) -> dict[str, Trial]:
    return search(Study.plan(store, base), here(base, objective))


@dataclass(frozen=True)
class Remembering:
    """A learning curve that keeps its epochs in the trial's folder and goes on from there.

    Every epoch that it trains is a line of `log`. Trials in `deadly` kill their process at their second epoch: once, or
    always.
    """

    log: str
    epoch_s: float = 0.0
    deadly: tuple[str, ...] = ()
    always: bool = False
    final: float | None = None  # figure of the last epoch; None: the configuration's

    def __call__(self, config: Config, folder: str, report: Report) -> dict[str, Any]:
        store, name = open_store(folder), Path(folder).name
        try:
            curve = get_json(store, "curve.json")
        except FileNotFoundError:
            curve = []
        for epoch, sumr in enumerate(curve, 1):
            report(epoch, sumr)
        for epoch in range(len(curve) + 1, config.train.num_epochs + 1):
            if name in self.deadly and epoch == 2 and (store.put_if_absent("died", b"once") or self.always):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.epoch_s)
            final = final_sumr(config) if self.final is None else self.final
            curve.append(final * epoch / config.train.num_epochs)
            with open(self.log, "a") as log:
                log.write(f"{name} {epoch}\n")
            put_json(store, "curve.json", curve)
            report(epoch, curve[-1])
        return {"test": curve[-1]}


def test_a_study_records_stops_and_survives_failing_trials(tmp_path: Path) -> None:
    own = point_at((0.3, *OPTIMUM[1:]))
    base = base_of(points=[{"train.lr": 9e-3}, own])
    trials, summary = studied(tmp_path, base, LearningCurve(fails_above_lr=5e-3))

    assert sorted(trials) == [f"{number:04d}" for number in range(8)]
    assert apply_point(base, trials["0000"].point) == base
    assert trials["0001"].state == "failed"
    assert trials["0001"].reason == "FloatingPointError: triplet is nan at lr 0.009"
    assert trials["0002"].point == own
    assert {trial.state for trial in trials.values()} == {"finished", "stopped", "failed"}
    for trial in trials.values():
        length = {"finished": EPOCHS, "failed": 0}.get(trial.state)
        assert list(trial.curve) == list(range(1, len(trial.curve) + 1))
        assert length in (None, len(trial.curve))
        written = resolve(yaml.safe_load((tmp_path / f"tune/study/trials/{trial.name}/config.yaml").read_text()))
        assert written.train == apply_point(base, trial.point).train

    assert summary == get_json(open_store(tmp_path), "tune/study/summary.json")
    assert summary["states"]["failed"] >= 1
    base_row, candidate = summary["proof"]
    assert (base_row["name"], base_row["validation"]["count"]) == ("base", 3)
    assert candidate["validation_gain"]["low"] > 0
    best = resolve(yaml.safe_load((tmp_path / "tune/study/best.yaml").read_text()))
    assert best.train == apply_point(base, candidate["point"]).train
    assert final_sumr(best) > final_sumr(base)
    assert (tmp_path / "tune/study/best.yaml").read_text().startswith(f"# {candidate['name']} beats the base by +")


def test_nothing_better_leaves_the_base_and_says_so(tmp_path: Path) -> None:
    base = apply_point(base_of(num_trials=3, scheduler="none"), point_at(OPTIMUM))
    assert final_sumr(base) == pytest.approx(PEAK, abs=0.01)
    _, summary = studied(tmp_path, base, LearningCurve())
    assert summary["verdict"].startswith("Nothing beat the base beyond run-to-run spread")
    assert summary["best"] == {}
    best = (tmp_path / "tune/study/best.yaml").read_text()
    assert best.startswith("# Nothing beat the base")
    assert resolve(yaml.safe_load(best)).train == base.train


def test_candidates_are_the_finished_by_figure_then_the_stopped_by_how_far_they_came() -> None:
    ends = {"0000": 9, "0001": 5, "0002": 7, "0003": 8, "0004": 3}
    trials = {name: Trial(name, {}, "finished", {1: 1.0, 9: float(best)}, 1.0) for name, best in ends.items()}
    trials["0001"] = Trial("0001", {}, "stopped", {1: 50.0}, 1.0)
    trials["0003"] = Trial("0003", {}, "stopped", {1: 2.0, 3: 8.0}, 1.0)
    trials["0005"] = Trial("0005", {}, "failed", {1: 99.0}, 1.0, "nan")
    assert [trial.name for trial in rank_trials(trials, 9, 9)] == ["0002", "0004", "0003", "0001"]
    assert [trial.name for trial in rank_trials(trials, 1, 9)] == ["0002"]


@pytest.mark.parametrize(
    ("others", "best", "said"),
    [
        (
            {"0001": 60.0},
            {"train.lr": 1.0},
            "trial-0001 had the best single run, SumR 60.0. Nothing was confirmed on several seeds.",
        ),
        ({"0001": 40.0, "0002": 30.0}, {}, "No single run was better than the base's, SumR 50.0: the next, trial-0001"),
        ({}, {}, "No trial but the base could be trained"),
    ],
)
def test_without_a_confirmation_the_best_single_run_counts_and_may_be_the_bases(
    tmp_path: Path, others: dict[str, float], best: dict[str, float], said: str
) -> None:
    trials = {"0000": Trial("0000", {"train.lr": 0.5}, "finished", {1: 50.0}, 1.0)}
    space = {"train.lr": {"uniform": [0.1, 1.0]}}
    trials |= {name: Trial(name, {"train.lr": 1.0}, "finished", {1: sumr}, 1.0) for name, sumr in others.items()}
    summary = Study.plan(open_store(tmp_path), base_of(space=space)).conclude(trials, [])
    assert summary["best"] == best
    assert summary["verdict"].startswith(said)
    written = (tmp_path / "best.yaml").read_text()
    assert written.startswith(f"# {summary['verdict']}\n")
    assert resolve(yaml.safe_load(written)).train.lr == best.get("train.lr", Config().train.lr)


def test_another_space_or_base_under_the_same_name_is_refused_with_the_difference(tmp_path: Path) -> None:
    store = open_study(str(tmp_path), "study")
    Study.plan(store, base_of()).declare()
    Study.plan(store, base_of(num_trials=99, trial_cpus=2.0)).declare()
    with pytest.raises(ValueError, match=r"space.train.margin.uniform is \[0.05, 0.4\] there, \[0.05, 0.3\] here"):
        Study.plan(store, base_of(space={**SPACE, "train.margin": {"uniform": [0.05, 0.3]}})).declare()
    with pytest.raises(ValueError, match=r"base.train.num_epochs is 9 there, 10 here"):
        Study.plan(store, resolve({"train": {"num_epochs": 10}, "tune": base_of().tune.model_dump()})).declare()
    with pytest.raises(ValueError, match=r"base.train.validation_split is 'val' there, 'test' here"):
        Study.plan(store, apply_point(base_of(), {"train.validation_split": "test"})).declare()
    with pytest.raises(ValueError, match=r"test_split is 'test' there, 'other' here"):
        Study.plan(store, base_of(test_split="other")).declare()


def test_points_are_taken_as_the_configuration_reads_them() -> None:
    base = base_of(points=[{"train.lr": "5e-4"}])  # without a point in the number, YAML gives a text
    assert Study.plan(open_store("unused"), base).first_points[1]["train.lr"] == 5e-4


def test_values_that_do_not_go_together_are_a_failed_trial_and_no_end_of_the_study(tmp_path: Path) -> None:
    space = {"student.hidden_dim": {"choice": [256, 384]}, "student.num_heads": {"choice": [4, 6]}}
    base = base_of(space=space, sampler="random", confirm_top=0)
    trials, _ = studied(tmp_path, base, LearningCurve())
    wrong = {"student.hidden_dim": 256, "student.num_heads": 6}
    reasons = [trial.reason for trial in trials.values() if trial.point == wrong]
    assert reasons
    assert all("num_heads=6 does not divide hidden_dim=256" in reason for reason in reasons)
    assert all(trial.state != "failed" for trial in trials.values() if trial.point != wrong)
    assert len(trials) == base.tune.num_trials


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"points": [{"train.lr": 1e-3, "train.weight_decay": 0.1}]}, "tune.points names train.weight_decay"),
        ({"points": [{"train.lr": -1.0}]}, "train.lr=-1.0"),
        ({"points": [{"train.lr": 1e-3}] * 3, "num_trials": 3}, "no room for the base"),
        ({"space": {"train.lr": {"uniform": [2, 1]}}}, "is empty"),
    ],
)
def test_unusable_points_are_refused_before_anything_runs(tmp_path: Path, tune: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        searched(open_study(str(tmp_path), "study"), base_of(**tune), LearningCurve())


@dataclass(frozen=True)
class Eventful:
    """What trials meet on Ray Tune, by name: four begin only once they run at the same time; 0001 is not finite; 0002
    loses its process once and 0003 always, at its second epoch; 0004 meets storage and workers that fail in turn; from
    0005 on they learn little."""

    folder: str

    def __call__(self, config: Config, folder: str, report: Report) -> dict[str, Any]:
        name, here = Path(folder).name, Path(self.folder)
        (here / f"{name}-came").touch()
        if name <= "0003":
            wait_for_company(here, 4)
        if name == "0001":
            raise FloatingPointError("triplet is nan")
        if name in ("0002", "0003"):
            deadly = Remembering(str(here / "log"), deadly=("0002", "0003"), always=name == "0003", final=90.0)
            return deadly(config, folder, report)
        if name == "0004":
            report(1, 10.0)
            with (here / "tries").open("a") as file:
                file.write(".")
            is_odd = len((here / "tries").read_text()) % 2 == 1
            raise OSError("the disk is\nfull") if is_odd else TrainingFailedError("no node is left")
        for epoch in range(1, EPOCHS + 1):
            report(epoch, epoch * (10.0 if name == "0000" else 0.1))
        return {"test": 1.0}


def wait_for_company(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*-came"))) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not {count} trials at a time")
        time.sleep(0.05)


def test_on_ray_tune_trials_share_cpus_and_stop_and_their_errors_and_lost_processes_are_recorded(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(progress.QUIET, raising=False)
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    (tmp_path / "here").mkdir()
    store = open_study(str(tmp_path), "study")
    base = base_of(num_trials=7, confirm_top=0)
    trials = search(Study.plan(store, base), Runner(base, Eventful(str(tmp_path / "here")), Worker("trial", 0.5)))

    states = {name: trial.state for name, trial in trials.items()}
    failed, stopped = ("0001", "0003", "0004"), ("0005", "0006")
    expected = {"0000": "finished", "0002": "finished"} | dict.fromkeys(failed, "failed")
    assert states == expected | dict.fromkeys(stopped, "stopped")
    assert trials["0001"].reason == "FloatingPointError: triplet is nan"
    assert all("broke off 3 times: " in str(trials[name].reason) for name in ("0003", "0004"))
    assert "\n" not in str(trials["0004"].reason)
    assert list(trials["0000"].curve) == list(trials["0002"].curve) == list(range(1, EPOCHS + 1))
    assert trials["0000"].outcome == {"test": 1.0}
    assert (tmp_path / "here/log").read_text().splitlines().count("0002 1") == 1  # it went on where it was
    for name, trial in trials.items():
        written = resolve(yaml.safe_load((tmp_path / f"tune/study/trials/{name}/config.yaml").read_text()))
        assert written.train == apply_point(base, trial.point).train
    check_progress(capsys.readouterr().err, trials)


def check_progress(said: str, trials: dict[str, Trial]) -> None:
    """A line says how many trials ended, run and were stopped, the best so far, and when all will be done."""
    lines = [line for line in said.splitlines() if line.startswith("tune: ")]
    assert any(
        re.search(r"^tune: [1-6]/7 trials, [\d.]+ trials/s, \d+ s left  [1-4] running, ", line) for line in lines
    )
    best = max((trial for trial in trials.values() if trial.curve), key=lambda trial: (trial.best, trial.name))
    ended = Counter(trial.state for trial in trials.values())
    counts = ", ".join(f"{number} {state}" for state, number in sorted(ended.items()))
    assert lines[-1].startswith("tune: 7/7 trials")
    assert lines[-1].endswith(f"0 running, {counts}, best SumR {best.best:.1f} ({best.name})")


def test_a_trial_of_which_no_process_ever_came_up_ends_with_the_reason(tmp_path: Path) -> None:
    class Trial:
        config = PlannedTrial("0000", {}, base_of()).values

        def __str__(self) -> str:
            return "0000"

        def get_error(self) -> Exception:
            return RuntimeError("no module named prvr_ray")

    folder = TrialFolder(open_store(tmp_path))
    _Recorder(folder, progress.Steps("tune", 1, "trials"), lambda trial: None).on_trial_error(0, [], Trial())
    assert folder.ended()["0000"].reason == "it broke off 3 times: no module named prvr_ray"


def test_reasons_of_several_lines_stay_in_the_comment_of_best_yaml(tmp_path: Path) -> None:
    written = settings_to_yaml(base_of(), "Nothing: CUDA error\nkernel errors\n\tmay come later").decode()
    assert written.startswith("# Nothing: CUDA error kernel errors may come later\n")
    assert resolve(yaml.safe_load(written)).train == base_of().train


DRIVER = """
import sys
sys.path[:0] = {paths!r}
import test_study
base = test_study.base_of(num_trials=8, scheduler="none", confirm_top=0)
test_study.searched(test_study.open_store({root!r}), base, test_study.Remembering({log!r}, epoch_s=0.02))
"""


def driver(root: Path, log: Path) -> "subprocess.Popen[bytes]":
    paths = [str(Path(__file__).parents[up]) for up in range(3)]  # this module, support, benchmarks
    code = DRIVER.format(paths=paths, root=str(root), log=str(log))
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


def test_after_sigkill_of_the_driver_no_finished_trial_is_repeated(tmp_path: Path) -> None:
    root, log = tmp_path / "study", tmp_path / "log"
    first = driver(root, log)
    ended_before = wait_for_records(root, 3, first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    logged = log.read_text().splitlines()
    assert driver(root, log).wait(timeout=240) == 0

    records = sorted(root.glob("trials/*/trial.json"))
    assert len(records) == 8
    later = log.read_text().splitlines()[len(logged) :]
    assert not {line.split()[0] for line in later} & ended_before
    # Interrupted ones went on: every epoch of every trial was trained once, or twice where the kill fell between
    # training it and keeping it.
    lines = log.read_text().splitlines()
    assert all(1 <= lines.count(f"{n:04d} {epoch}") <= 2 for n in range(8) for epoch in range(1, EPOCHS + 1))
    assert sum(lines.count(line) > 1 for line in set(lines)) <= 2


def wait_for_records(root: Path, count: int, process: "subprocess.Popen[bytes]") -> set[str]:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        ended = {path.parent.name for path in root.glob("trials/*/trial.json")}
        if len(ended) >= count:
            return ended
        time.sleep(0.02)
    raise AssertionError(f"no {count} trials ended; the driver's exit code is {process.poll()}")


@pytest.mark.slow
def test_a_population_keeps_improving_from_its_best_members(local_ray: None, tmp_path: Path) -> None:
    corners = [point_at((share,) * len(OPTIMUM)) for share in (0.0, 0.9, 1.0)]
    base = base_of(num_trials=6, points=corners, scheduler="pbt", grace_epochs=2, confirm_top=0)
    ends = {f"{number:04d}": final_sumr(apply_point(base, corner)) for number, corner in enumerate(corners, 1)}
    assert max(ends.values()) < final_sumr(base) / 3
    store = open_study(str(tmp_path), "study")
    trials = search(Study.plan(store, base), Runner(base, Remembering(str(tmp_path / "log"), epoch_s=0.05), ONE_CPU))
    assert {trial.state for trial in trials.values()} == {"finished"}
    assert all(sorted(trial.curve) == list(range(1, EPOCHS + 1)) for trial in trials.values())
    assert any(apply_point(base, trial.point) != base for trial in trials.values())
    assert sum((trials[name].best or 0) > end for name, end in ends.items()) >= 2  # they took over better members
    assert not store.list("trials/population")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_the_better_region_is_found_with_every_seed(tmp_path: Path, seed: int) -> None:
    draws = random.Random(seed)
    places = (tuple(draws.random() for _ in OPTIMUM) for _ in range(2000))
    best_twentieth = sorted(final_sumr(apply_point(Config(), point_at(place))) for place in places)[-100]
    base = base_of(num_trials=40, seed=seed, num_seeds=5, confirm_top=2)
    _, summary = studied(tmp_path, base, LearningCurve())
    assert final_sumr(apply_point(base, summary["best"])) > best_twentieth > final_sumr(base)
    assert list_seeds(base) == summary["seeds"]


def test_a_study_in_s3_resumes_without_a_repetition(s3_root: str) -> None:
    store = open_study(s3_root, "study")
    Study.plan(store, base_of(num_trials=3)).declare()
    some = searched(store, base_of(num_trials=3), LearningCurve())
    before = {item.key: item.etag for item in store.list("trials/")}
    more = searched(store, base_of(num_trials=5), LearningCurve())
    assert {name: more[name] for name in some} == some
    assert len(more) == 5
    after = {item.key: item.etag for item in store.list("trials/")}
    assert {key: after[key] for key in before} == before


def test_a_population_is_named_before_ray_resolves_its_placeholders() -> None:
    """Ray replaces objects of a grid search by placeholders until a trial starts; it names trials before."""
    planned = PlannedTrial.plan("0000", {"train.lr": 1e-3}, base_of())
    space = _population(["0000"], lambda name: planned)["param_space"]
    [trial] = inject_placeholders(space, create_resolvers_map())["trial"]["grid_search"]
    assert (trial["name"], trial["point"]) == ("0000", {"train.lr": 1e-3})

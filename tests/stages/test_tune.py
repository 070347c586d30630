"""`prvr tune` on planted features, with real training, and what it and `prvr ablate` refuse or announce."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from planted import plant

from prvr_ray.cli import main
from prvr_ray.config import Config, resolve
from prvr_ray.stages.ablate import ablate
from prvr_ray.stages.train import train
from prvr_ray.stages.tune import tune

SPACE = {"train.lr": {"loguniform": [1e-3, 1e-2]}, "train.margin": {"uniform": [0.1, 0.4]}}


def config(root: Path, train: dict[str, Any] | None = None, **tuned: Any) -> Config:
    return resolve(
        {
            "student": {"hidden_dim": 16, "max_frames": 12, "max_tokens": 6},
            "train": {
                "num_epochs": 4,
                "videos_per_batch": 10,
                "lr": 1e-3,
                "hard_pool_size": 4,
                "cache_folder": str(root / "cache"),
                **(train or {}),
            },
            "tune": {"num_trials": 3, "grace_epochs": 2, "num_seeds": 2, "confirm_top": 1, "space": SPACE, **tuned},
        }
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    plant(str(tmp_path))
    return tmp_path


def test_a_study_trains_proves_and_writes_a_configuration_to_train_with(local_ray: None, root: Path) -> None:
    summary = tune(config(root), root=str(root), study="first")
    assert sum(summary["states"].values()) == 3
    base, candidate = summary["proof"]
    assert base["validation"]["count"] == base["test"]["count"] == 2
    assert candidate["validation_gain"]["count"] == 2

    kept = json.loads((root / "tune/first/summary.json").read_text())
    finished = [trial for trial in kept["trials"] if trial["state"] == "finished"]
    assert all(Path(trial["outcome"]["checkpoint"]).is_file() for trial in finished)
    assert finished
    assert all("test" not in trial["outcome"] for trial in kept["trials"])  # the test split is for the proof
    caches = [path for path in (root / "cache").iterdir() if path.is_dir()]
    assert len(caches) == 3  # one a split, whatever the number of trials and runs

    best = yaml.safe_load((root / "tune/first/best.yaml").read_text())
    run = train(resolve(best), root=str(root), run="best")
    again = train(resolve({**best, "train": {**best["train"], "seed": 9528}}), root=str(root), run="best-9528")
    figures = json.loads((root / "tune/first/proof/base-seed9528/trial.json").read_text())
    assert run["epochs"] == 4
    if summary["best"] == {}:
        assert again["fused"]["sumr"] == pytest.approx(figures["best"], abs=0.01)


def test_what_cannot_run_is_refused_at_once(local_ray: None, root: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"GPU"):
        tune(config(root, trial_gpus=1.0), root=str(root), study="gpu")
    with pytest.raises(ValueError, match=r"CPU"):
        tune(config(root, train={"num_workers": 64, "worker_cpus": 8}), root=str(root), study="many")
    with pytest.raises(ValueError, match="needs trials of one process"):
        tune(config(root, train={"num_workers": 2}, scheduler="pbt"), root=str(root), study="pbt")
    with pytest.raises(ValueError, match="split 'nowhere' has no query"):
        tune(config(root, train={"train_split": "nowhere"}), root=str(root), study="split")
    with pytest.raises(ValueError, match="is not a name"):
        tune(config(root), root=str(root), study="../escape")
    assert time.monotonic() - begun < 30


def test_a_dry_run_says_how_much_and_writes_nothing(root: Path) -> None:
    before = sorted(root.rglob("*"))
    said = tune(config(root), root=str(root), study="dry", dry_run=True)
    assert said["trials"] == {"ended": 0, "to_run": 3}
    assert said["proof_runs"] == 4
    assert said["epochs_at_most"] == 28
    asked = ablate(config(root), root=str(root), dry_run=True)
    # 19 named variants; four of them are the base configuration.
    assert (asked["variants"], asked["runs"]) == (16, 32)
    assert sorted(root.rglob("*")) == before


def test_mistakes_on_the_command_line_end_with_code_2(root: Path, tmp_path: Path, capfd: Any) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("tune: {space: {train.marjin: {uniform: [0, 1]}}}")
    assert main(["tune", "--root", str(root), "--study", "s", "--config", str(space)]) == 2
    said = capfd.readouterr().err
    assert "train.marjin" in said
    assert "train.margin" in said  # among the valid ones
    space.write_text("tune: {space: {train.margin: {uniform: [1, 0]}}}")
    assert main(["tune", "--root", str(root), "--study", "s", "--config", str(space)]) == 2
    assert "is empty" in capfd.readouterr().err

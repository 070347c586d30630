"""`prvr tune` on planted features, with real training: what it leaves, what it survives, and what it refuses."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.planted import plant
from support.proofs import figure_of, gain_by_hand

from prvr_ray.cli import main
from prvr_ray.config import Config, resolve
from prvr_ray.stages.ablate import ablate
from prvr_ray.stages.train import train
from prvr_ray.stages.tune import tune
from prvr_ray.storage import get_json, open_store

SPACE = {"train.lr": {"loguniform": [1e-3, 1e-2]}, "train.margin": {"uniform": [0.1, 0.4]}}
WIDE = {"train.lr": {"loguniform": [1e-5, 1e-2]}, "train.margin": {"uniform": [0.1, 0.4]}}
FATAL = {"train.lr": 1e30}  # no training survives it


def settings(root: Path, train: dict[str, Any] | None = None, **tuned: Any) -> dict[str, Any]:
    return {
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


def config(root: Path, train: dict[str, Any] | None = None, **tuned: Any) -> Config:
    return resolve(settings(root, train, **tuned))


def command(root: Path, values: dict[str, Any], *options: str, study: str = "first") -> list[str]:
    """The words of `prvr tune` with these settings in a file."""
    file = root / "settings.yaml"
    file.write_text(yaml.safe_dump(values))
    return ["tune", "--root", str(root), "--study", study, "--config", str(file), *options]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    plant(str(tmp_path))
    return tmp_path


def test_a_study_trains_proves_and_writes_a_configuration_to_train_with(
    local_ray: None, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = settings(root, num_trials=4, points=[FATAL])
    assert main(command(root, values, "--json")) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    summary = json.loads(last)
    assert summary["states"].pop("failed") == 1
    assert sum(summary["states"].values()) == 3
    base, candidate = summary["proof"]
    assert base["validation"]["count"] == base["test"]["count"] == 2

    kept = json.loads((root / "tune/first/summary.json").read_text())
    trials = {trial["name"]: trial for trial in kept["trials"]}
    assert (trials["0000"]["point"]["train.lr"], trials["0000"]["state"]) == (1e-3, "finished")
    assert "FloatingPointError" in trials["0001"]["reason"]
    finished = [trial for trial in trials.values() if trial["state"] == "finished"]
    assert all(Path(trial["outcome"]["checkpoint"]).is_file() for trial in finished)
    assert all("test" not in trial["outcome"] for trial in trials.values())  # the test split is for the proof
    caches = [path for path in (root / "cache").iterdir() if path.is_dir()]
    assert len(caches) == 3  # one a split, whatever the number of trials and runs

    folder = root / "tune/first/proof"
    for split in ("validation", "test"):
        assert candidate[f"{split}_gain"] == gain_by_hand(folder, candidate["name"], "base", (9528, 9529), split)
    text = "\n".join(shown)
    for said in ("0000", candidate["name"], "lr", "margin", f"{candidate['validation']['mean']:.1f}", str(root)):
        assert said in text
    assert " ".join(summary["verdict"].split()) in " ".join(text.split())
    assert "trial 0001 failed: FloatingPointError" in text

    other = {**values, "tune": {**values["tune"], "space": {"train.lr": SPACE["train.lr"]}}}
    assert main(command(root, other)) == 2
    assert "space.train.margin is {'uniform': [0.1, 0.4]} there, None here" in one_line(capsys)

    best = yaml.safe_load((root / "tune/first/best.yaml").read_text())
    run = train(resolve({**best, "train": {**best["train"], "seed": 9528}}), root=str(root), run="best")
    proved = "base" if summary["best"] == {} else candidate["name"]
    assert run["fused"]["sumr"] == pytest.approx(figure_of(folder, f"{proved}-seed9528", "validation"), abs=0.01)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        ({"space": {"train.marjin": {"uniform": [0, 1]}}}, "unknown settings train.marjin; one of student.hidden_dim"),
        ({"space": {"train.margin": {"uniform": [1, 0]}}}, "uniform [1, 0] is empty"),
        ({"space": {"train.margin": {"choice": []}}}, "choice needs one or more different values"),
        ({"space": {"train.margin": [0.1, 0.2]}}, "tune.space.train.margin"),
        ({"space": {}}, "tune.space is empty"),
        ({"points": [{"train.weight_decay": 0.1}]}, "tune.points names train.weight_decay"),
        ({"trial_gpus": 1.0}, "the cluster cannot give 1 trial(s) of CPU 1, GPU 1 each: no node has 1 GPU"),
        ({"trial_cpus": 64.0}, "no node has 64 CPU (at most 2)"),
        ({"scheduler": "asha2"}, "tune.scheduler"),
        ({"scheduler": "pbt", "space": {"student.hidden_dim": {"choice": [16, 32]}}}, "pbt cannot vary student.hidden"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    local_ray: None, root: Path, capsys: pytest.CaptureFixture[str], tuned: dict[str, Any], message: str
) -> None:
    begun = time.monotonic()
    assert main(command(root, settings(root, **tuned))) == 2
    assert message in one_line(capsys)
    assert time.monotonic() - begun < 20
    assert not list((root / "tune").glob("*/trials/*"))


def test_what_cannot_run_is_refused_at_once(local_ray: None, root: Path) -> None:
    begun = time.monotonic()
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
    # 28 named variants: four of them are the base configuration, three more are in an earlier question.
    assert (asked["variants"], asked["runs"]) == (22, 44)
    assert sorted(root.rglob("*")) == before


@pytest.mark.slow
def test_better_settings_than_a_poor_base_are_found_and_hold_on_videos_that_chose_nothing(
    local_ray: None, root: Path
) -> None:
    poor = config(root, {"lr": 1e-5, "num_epochs": 6}, num_trials=8, num_seeds=3, space=WIDE)
    summary = tune(poor, root=str(root), study="real")
    assert "beats the base by +" in summary["verdict"]
    gain = summary["proof"][1]["test_gain"]
    assert gain == gain_by_hand(
        root / "tune/real/proof", summary["proof"][1]["name"], "base", (9528, 9529, 9530), "test"
    )
    assert gain["low"] > 0


@pytest.mark.slow
def test_a_population_of_real_trainings_takes_over_weights(local_ray: None, root: Path) -> None:
    space = {"train.lr": {"loguniform": [1e-6, 1e-2]}, "train.dropout": {"uniform": [0.0, 0.5]}}
    points = [{"train.lr": lr} for lr in (1e-2, 1e-6, 2e-6)]
    asked = config(root, {"num_epochs": 9}, scheduler="pbt", num_trials=4, points=points, confirm_top=0, space=space)
    summary = tune(asked, root=str(root), study="population")
    assert summary["states"] == {"finished": 4}
    trials = json.loads((root / "tune/population/summary.json").read_text())["trials"]
    assert [sorted(trial["curve"], key=int) for trial in trials] == [[str(epoch) for epoch in range(1, 10)]] * 4
    # Two rates so small teach nothing: who began with one and ends well has another's weights.
    alone = config(root, {"num_epochs": 9, "lr": 1e-6}, scheduler="none", num_trials=1, confirm_top=0, space=space)
    [untaught] = tune(alone, root=str(root), study="alone")["leaders"]
    assert min(trial["best"] for trial in trials[2:]) > untaught["best"] + 20


@pytest.mark.slow
def test_trials_of_several_workers_share_what_there_is_and_give_what_one_process_gives(
    local_ray: None, root: Path
) -> None:
    exact = {"dropout": 0.0, "input_dropout": 0.0, "num_epochs": 2, "precision": "float64"}
    small = {"num_trials": 2, "scheduler": "none", "confirm_top": 0, "points": [{"train.lr": 5e-3}]}
    groups = config(root, {**exact, "num_workers": 2, "worker_cpus": 1}, **small)
    tune(groups, root=str(root), study="groups")  # 2 CPUs: two groups at a time would each wait for the other
    tune(config(root, exact, **small), root=str(root), study="single")
    assert curves(root, "groups") == curves(root, "single")
    assert len(curves(root, "groups")) == 2


THREE_STUDIES = """
import sys
from prvr_ray.cli import main
from prvr_ray.stages.session import connect
with connect():
    for words in {commands!r}:
        if code := main(words):
            sys.exit(code)
"""


@pytest.mark.slow
def test_studies_in_s3_train_confirm_and_resume_and_write_nothing_outside_root(s3_root: str, tmp_path: Path) -> None:
    bucket = s3_root.rpartition("/")[0]
    s3_root = f"{s3_root}/data#1%20"  # a URI would end at the #, and read %20 as a space
    plant(s3_root)
    values = settings(tmp_path, {"num_epochs": 3}, grace_epochs=1)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(values))
    words = ["tune", "--root", s3_root, "--config", str(tmp_path / "settings.yaml"), "--json"]
    halving, population = [*words, "--study", "s"], [*words, "--study", "p", "--tune.scheduler", "pbt"]
    # A Ray of its own, whose workers see the credentials.
    program = THREE_STUDIES.format(commands=[halving, halving, population])
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    first, again, other = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"verdict"')]
    assert sum(first["states"].values()) == sum(other["states"].values()) == 3
    assert first["proof"][0]["test"]["count"] == other["proof"][0]["test"]["count"] == 2
    assert again["proof"] == first["proof"]
    store = open_store(s3_root)
    for record in [item.key for item in store.list("tune/") if item.key.endswith("/trial.json")]:
        folder, _, weights = get_json(store, record)["outcome"].get("checkpoint", "").rpartition("/")
        assert not folder or open_store(folder).get(weights)
    assert not store.list("tune/p/trials/population")
    outside = [item for item in open_store(bucket).list() if not item.key.startswith("collection/data#1%20/")]
    # Arrow's S3 client, which Ray uses for a population, marks every folder on the way to ROOT with an empty object.
    assert {(item.key, item.size) for item in outside} <= {("collection/", 0)}


def curves(root: Path, study: str) -> dict[str, list[float]]:
    trials = json.loads((root / f"tune/{study}/summary.json").read_text())["trials"]
    return {trial["name"]: [round(trial["curve"][epoch], 3) for epoch in sorted(trial["curve"])] for trial in trials}

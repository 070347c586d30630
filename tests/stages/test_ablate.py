"""`prvr ablate` on planted features, with real training: it resumes, and its table is what its runs came to."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.planted import plant
from support.proofs import figure_of, gain_by_hand

from prvr_ray.cli import main
from prvr_ray.config import resolve
from prvr_ray.stages.train import train
from prvr_ray.tuning.ablations import list_questions

SEEDS = (9528, 9529)
SETTINGS = {
    "student": {"hidden_dim": 16, "max_frames": 12, "max_tokens": 6},
    "train": {"num_epochs": 2, "videos_per_batch": 20, "lr": 5e-3, "hard_pool_size": 4},
    "tune": {"num_seeds": len(SEEDS), "teacher_noise": [2.0]},
}


def records(root: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (root / "tune/ablation/proof").glob("*/trial.json")}


def kill_after(count: int, root: Path, command: list[str]) -> dict[str, bytes]:
    """Start the command with a Ray of its own, kill it once so many runs have ended, and return their records."""
    program = f"import sys; from prvr_ray.cli import main; sys.exit(main({command!r}))"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    deadline = time.monotonic() + 120
    while len(records(root)) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return records(root)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    plant(str(tmp_path))
    values = {**SETTINGS, "train": {**SETTINGS["train"], "cache_folder": str(tmp_path / "cache")}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(values))
    return ["ablate", "--root", str(tmp_path), "--config", str(tmp_path / "settings.yaml"), "--json"]


def test_one_question_is_answered_by_runs_that_a_second_call_does_not_repeat(
    local_ray: None,
    tmp_path: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prvr_ray.stages.ablate.list_questions", lambda base: list_questions(base)[:1])
    assert main(command) == 0
    first = records(tmp_path)
    assert len(first) == 3 * len(SEEDS)
    assert main(command) == 0
    assert records(tmp_path) == first
    *shown, last = capsys.readouterr().out.splitlines()
    check_rows(tmp_path, json.loads(last)["questions"], " ".join(shown))


@pytest.mark.slow
def test_the_questions_are_answered_by_runs_that_a_kill_does_not_repeat(
    local_ray: None, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = kill_after(5, tmp_path, command)
    assert 5 <= len(before) < 28
    assert main(command) == 0
    after = records(tmp_path)
    assert len(after) == 16 * len(SEEDS)
    assert {name: after[name] for name in before} == before
    *shown, last = capsys.readouterr().out.splitlines()
    answers = json.loads(last)["questions"]
    assert [len(question["rows"]) for question in answers] == [3, 5, 4, 6, 5, 3, 3]
    check_rows(tmp_path, answers, " ".join(shown))
    check_against_plain_training(tmp_path)


def check_rows(root: Path, answers: list[dict], shown: str) -> None:
    """Every figure of every row follows from the records of its runs, and is shown."""
    folder, base = root / "tune/ablation/proof", "both-branches"
    for question in answers:
        reference = question["reference"]
        trained = {"exp-distillation": base, "sigmoid-soft-targets": base, "teacher": base}
        trained["exp-distillation-noise-2"] = "teacher-noise-2"
        for row in question["rows"]:
            runs = trained.get(row["name"], row["name"])
            for split in ("validation", "test"):
                figures = [figure_of(folder, f"{runs}-seed{seed}", split) for seed in SEEDS]
                assert row[split]["mean"] == pytest.approx(sum(figures) / len(figures))
                if row["name"] == reference:
                    assert row[f"{split}_gain"] is None
                else:
                    gain = gain_by_hand(folder, runs, trained.get(reference, reference), SEEDS, split)
                    assert row[f"{split}_gain"] == gain
            assert row["name"] in shown
        assert question["finding"].startswith(
            f"{question['title']} Compared with {reference} on the validation split, "
        )
        assert all(row["name"] in question["finding"] for row in question["rows"])


def check_against_plain_training(root: Path) -> None:
    """What a run came to is what `prvr train` comes to with the same settings."""
    noisy = {**SETTINGS["train"], "teacher_noise": 2.0, "seed": SEEDS[0], "cache_folder": str(root / "cache")}
    alone = train(resolve({"student": SETTINGS["student"], "train": noisy}), root=str(root), run="noisy")
    figure = figure_of(root / "tune/ablation/proof", f"teacher-noise-2-seed{SEEDS[0]}", "validation")
    assert alone["fused"]["sumr"] == pytest.approx(figure, abs=0.01)

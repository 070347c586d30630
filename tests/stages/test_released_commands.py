"""A folder in the released layout, from import to report, with the commands that a user types."""

import json
from pathlib import Path

import pytest
from support import released_layout

from prvr_ray import cli
from prvr_ray.runs.run import open_run

ROWS = {"teacher", "inheritance", "exploration", "fused", "teacher+student"}
METRICS = {"r1", "r5", "r10", "r100", "sumr", "medr", "meanr", "map"}


@pytest.fixture
def prvr(tmp_path, local_ray, capsys):
    """Runs `prvr COMMAND --root ROOT ...` on a root with imported features; gives its JSON."""

    def run(command: str, *options: str) -> dict:
        assert cli.main([command, "--root", str(tmp_path / "root"), *options, "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    released_layout.render(tmp_path / "released", {"train": 8, "val": 4, "test": 5})
    run("import", "--layout", "released", "--source", str(tmp_path / "released"))
    return run


@pytest.mark.slow
def test_released_features_train_resume_evaluate_and_report(prvr, tmp_path, capsys):
    small = ["--student.hidden_dim=16", "--train.num_epochs=2", "--train.videos_per_batch=3"]
    training = [
        "train",
        "--run",
        "first",
        "--preset",
        "activitynet",
        *small,
        f"--train.cache_folder={tmp_path / 'cache'}",
    ]
    trained = prvr(*training)
    assert (trained["epochs"], trained["train"]["videos"], trained["validation"]["videos"]) == (2, 8, 4)

    folder = Path(tmp_path / "root/runs/first")
    first, last = sorted(folder.glob("checkpoints/last-*"))
    expected = last.read_bytes()
    for path in (last, folder / "summary.json", folder / "metrics/epoch-00001.json"):  # a kill in the second epoch
        path.unlink()
    assert open_run(str(tmp_path / "root"), "first").latest_checkpoint() == f"checkpoints/{first.name}"
    assert prvr(*training)["epochs"] == 2
    assert last.read_bytes() == expected

    evaluation = prvr("evaluate", "--run", "first", "--split", "test")
    assert set(evaluation["rows"]) == ROWS
    assert all(set(figures) == METRICS for figures in evaluation["rows"].values())
    assert prvr("index", "--run", "first", "--index", "main")["videos"] == 17
    answered = prvr("score", "--index", "main", "--queries", "test", "--output", "test", "--top-k", "3")
    assert answered["queries"] == evaluation["queries"]
    reported = prvr("report", "--run", "first")
    assert reported["missing"] == ["No search study: `prvr tune` makes one.", "No ablation: `prvr ablate` makes one."]
    page = Path(reported["output"]).read_text(encoding="utf-8")
    assert "new_clip_vit_32_tiny_vid_features, 16 features" in page
    assert "✓ right" in page

    (tmp_path / "texts.txt").write_text("a person opens a fridge\n")
    asked = ["--root", str(tmp_path / "root"), "--index", "main"]
    for command in (
        ["search", "a person opens a fridge", *asked],
        ["score", *asked, "--queries", str(tmp_path / "texts.txt"), "--output", "texts"],
    ):
        assert cli.main(command) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "were imported: their text vectors" in line
        assert "use a split whose text features were imported too" in line

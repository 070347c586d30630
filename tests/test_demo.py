"""`prvr demo` at a small size, and at its real size among the slow tests."""

import os
import shutil
from pathlib import Path

import pytest

from prvr_ray.config import resolve
from prvr_ray.stages.demo import demo

SMALL = {
    "demo": {"num_videos": {"train": 8, "val": 4, "test": 5}, "num_stills": 64, "teacher_steps": 4, "tune_epochs": 1},
    "student": {"hidden_dim": 32},
    "train": {"num_epochs": 2, "videos_per_batch": 4, "num_workers": 2},
    "tune": {"num_trials": 2, "grace_epochs": 1, "confirm_top": 0},
}


COSTLY = {".mp4", ".parquet", ".safetensors"}  # the rest are lists and summaries, written anew with the same content


def files_below(root: Path) -> dict[Path, int]:
    """When each file that takes work was last written; evaluating is cheap and done again."""
    kept = (path for path in root.rglob("*") if path.suffix in COSTLY and "evaluations" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in kept}


def test_a_second_demo_finds_all_stages_done_and_says_the_same(tmp_path, local_ray):
    config = resolve(SMALL, "demo")
    first = demo(config, root=str(tmp_path))
    assert set(first["evaluate"]["rows"]) >= {"teacher", "inheritance", "exploration", "fused"}
    assert first["evaluate"]["split"] == "test"
    page = Path(first["report"]["output"])
    assert page.is_relative_to(tmp_path)
    assert "<html" in page.read_text()
    before = files_below(tmp_path)
    for folder in ("world", "teacher", "queries", "features", "runs/demo", "index/demo", "scores/demo"):
        assert any(path.is_relative_to(tmp_path / folder) for path in before), folder
    again = demo(config, root=str(tmp_path))
    assert files_below(tmp_path) == before
    assert again["evaluate"]["rows"] == first["evaluate"]["rows"]


def test_a_root_of_another_demo_is_refused(tmp_path):
    config = resolve(SMALL, "demo")
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "spec.json").write_text('{"format_version": 1, "seed": 7}')
    with pytest.raises(ValueError, match="seed is 7 there, 0 here"):
        demo(config, root=str(tmp_path))


def test_a_bucket_as_root_is_refused():
    with pytest.raises(ValueError, match="local folder"):
        demo(resolve({}, "demo"), root="s3://bucket/demo")


@pytest.mark.slow
def test_the_fused_student_beats_its_teacher_on_the_test_split_of_another_world(tmp_path, local_ray):
    if made := os.environ.get("PRVR_DEMO_ROOT"):  # what `make demo` left: its teacher will do here too
        shutil.copytree(f"{made}/teacher", tmp_path / "teacher")
    config = resolve({"demo": {"seed": 1}, "tune": {"num_trials": 2}}, "demo")
    rows = demo(config, root=str(tmp_path))["evaluate"]["rows"]
    assert rows["fused"]["sumr"] > rows["teacher"]["sumr"] + 5

"""`prvr demo` at a small size, and at its real size among the slow tests."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prvr_ray.collection import open_collection
from prvr_ray.config import Config, ScoreSettings, resolve
from prvr_ray.stages.demo import demo
from prvr_ray.stages.score import score

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


@pytest.fixture
def made(tmp_path, local_ray) -> tuple[Config, Path]:
    """A demo that has been run: what `make demo` left, where PRVR_DEMO_ROOT names it, else a small one."""
    if root := os.environ.get("PRVR_DEMO_ROOT"):
        return resolve({}, "demo"), Path(root).resolve()
    config = resolve(SMALL, "demo")
    demo(config, root=str(tmp_path))
    return config, tmp_path


def test_a_second_demo_finds_all_stages_done_and_says_the_same(made):
    config, root = made
    first = json.loads((root / "runs/demo/evaluations/test-held-out.json").read_text())
    assert set(first["rows"]) >= {"teacher", "inheritance", "exploration", "fused"}
    assert first["split"] == "test"
    before = files_below(root)
    for folder in ("world", "teacher", "queries", "features", "runs/demo", "index/demo", "scores/demo"):
        assert any(path.is_relative_to(root / folder) for path in before), folder
    if config.demo == resolve({}, "demo").demo:
        assert first["rows"]["fused"]["sumr"] > first["rows"]["teacher"]["sumr"] + 5  # as README shows
    (root / "reports/demo/index.html").unlink()
    again = demo(config, root=str(root))
    assert files_below(root) == before
    assert again["evaluate"]["rows"] == first["rows"]
    assert Path(again["report"]["output"]) == root / "reports/demo/index.html"
    assert "<html" in (root / "reports/demo/index.html").read_text()
    assert len(again["ask_teacher"]["answers"]) == 3
    share = first_among_test_videos(root)
    assert 100 * share == pytest.approx(first["rows"]["teacher"]["r1"], abs=1e-6)


def first_among_test_videos(root: Path) -> float:
    """Share of the test queries whose video the teacher's index puts first among the test videos."""
    settings = ScoreSettings(top_k=1000, num_moments=0)
    output = score(settings, root=str(root), index="teacher", queries="test", output="teacher")["output"]
    collection = open_collection(str(root))
    videos, queries = collection.videos().to_pylist(), collection.queries("test").to_pylist()
    in_test = {video["video_id"] for video in videos if video["split"] == "test"}
    first: dict[str, str] = {}
    for path in sorted(Path(output).glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if row["video_id"] in in_test:
                first.setdefault(row["query_id"], row["video_id"])
    return sum(first[query["query_id"]] in query["video_ids"] for query in queries) / len(queries)


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
@pytest.mark.double
def test_the_fused_student_beats_its_teacher_on_the_test_split_of_another_world(tmp_path, local_ray):
    config = resolve({"demo": {"seed": 1}, "tune": {"num_trials": 2}}, "demo")
    rows = demo(config, root=str(tmp_path))["evaluate"]["rows"]
    assert rows["fused"]["sumr"] > rows["teacher"]["sumr"] + 5

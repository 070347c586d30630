"""The section about what was run."""

from prvr_ray.config import Config
from prvr_ray.report.page import Facts, Table
from prvr_ray.report.setup import setup_section

SPEC = {"teacher": {"name": "ViT", "dim": 512}, "student": {"name": "RN50", "dim": 1024}, "shared": False, "fps": 2.0,
        "sampling": "uniform"}  # fmt: skip


def record(command, seconds, **counted):
    return {"command": command, "ended_at": 0.0, "versions": {"torch": "2"}, "summary": {"seconds": seconds, **counted}}


def tables(section):
    return [block for block in section.blocks if isinstance(block, Table)]


def test_only_settings_that_are_not_the_defaults_are_listed():
    settings = Config().model_dump(include={"student", "train"}, mode="json")
    settings["train"]["lr"] = 0.5
    [table] = tables(setup_section("root", None, settings, []))
    assert table.rows == [["train.lr", "0.5", "0.00025"]]


def test_two_encoders_are_told_apart_from_one():
    facts = next(block for block in setup_section("root", SPEC, {}, []).blocks if isinstance(block, Facts))
    assert dict(facts.pairs)["student's inputs"] == "RN50, 1024 features a frame"
    facts = next(b for b in setup_section("root", SPEC | {"shared": True}, {}, []).blocks if isinstance(b, Facts))
    assert dict(facts.pairs)["student's inputs"] == "the teacher's, 1024 features a frame"


def test_a_command_is_told_by_its_longest_call():
    history = [
        record("ingest", 20.0, frames=5000, videos={"total": 7, "failed": 1}, is_new=True),
        record("train", 9.5, epochs=4),
        record("tune", 60.0, best={"train.hard_pool_size": 44}, states={"finished": 3}),
        record("ingest", 1.0, frames=0, videos={"total": 7}),
    ]
    _, table = tables(setup_section("root", SPEC, {}, history))
    rows = {row[0]: row[2:] for row in table.rows}
    assert rows["ingest"] == ["20 s", "250 frames/s", "frames 5,000, videos total 7, videos failed 1"]
    assert rows["train"] == ["10 s", "25.3 epochs/min", "epochs 4"]
    assert rows["tune"] == ["60 s", "", "states finished 3"]

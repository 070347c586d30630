"""What `prvr train` says and refuses around a training: the training itself runs in this process, without Ray."""

import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest
from support import released_layout

from prvr_ray import schema
from prvr_ray.collection import open_collection
from prvr_ray.config import Config, resolve
from prvr_ray.evaluation.evaluate import EvaluationJob, evaluate_split
from prvr_ray.features.importing import import_collection
from prvr_ray.index.student_encoder import Windowing
from prvr_ray.runs.run import open_run
from prvr_ray.runs.training_data import TrainingData
from prvr_ray.stages.ablate import ablate
from prvr_ray.stages.evaluate import evaluate
from prvr_ray.stages.index import index
from prvr_ray.stages.train import Job, train
from prvr_ray.stages.trial_runner import _as_uri
from prvr_ray.stages.tune import tune
from prvr_ray.storage import get_json, put_json
from prvr_ray.student.training import fit


def train_here(job: Job) -> None:
    settings = job.config
    fit(*job.data.open_caches(settings), settings.student, settings.train, on_epoch=job.folder.put_epoch)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("prvr_ray.stages.train.run_workers", train_here)
    monkeypatch.setattr("prvr_ray.stages.train.connect", lambda address: contextlib.nullcontext())
    return imported(tmp_path / "root")


def imported(folder: Path, **splits: int) -> str:
    released_layout.render(folder / "released", splits or {"train": 6, "val": 3, "test": 3})
    import_collection("released", str(folder / "released"), str(folder / "data"))
    return str(folder / "data")


def settings(root: str, **of_train: object) -> Config:
    of_train = {"num_epochs": 2, "videos_per_batch": 3, "lr": 2e-3, "cache_folder": f"{root}/../cache", **of_train}
    return resolve({"student": {"hidden_dim": 16, "max_frames": 12}, "train": of_train})


def test_a_finished_run_says_that_captions_have_been_added_since(root):
    first = train(settings(root), root=root, run="r")
    assert train(settings(root), root=root, run="r") == first
    collection = open_collection(root)
    [known] = collection.queries("train").slice(0, 1).to_pylist()
    features = collection.features()
    rows = features.query_shards.scan().to_pylist()
    [encoded] = [row for row in rows if row["query_id"] == known["query_id"]]
    more = {**known, "query_id": "new"}
    collection.query_shards.append(pa.Table.from_pylist([more], schema.QUERIES))
    features.query_shards.append(pa.Table.from_pylist([{**encoded, "query_id": "new"}], schema.FEATURE_QUERIES))
    again = train(settings(root), root=root, run="r")
    assert "queries of train: 1 new or changed" in again["note"]
    assert "give --run another name" in again["note"]
    assert {key: value for key, value in again.items() if key != "note"} == first


def test_compaction_is_no_change_of_the_data(root):
    data = TrainingData.of(root, "default")
    shards = open_collection(root).query_shards
    shards.append(shards.scan().select(schema.QUERIES.names))  # the same rows in another shard
    assert data.describe_changes(TrainingData.of(root, "default"), settings(root)) == ""


def test_a_small_validation_split_is_said_before_training_with_what_to_do(root, caplog):
    summary = train(settings(root), root=root, run="r")
    for said in (caplog.text, summary["warning"]):
        assert "the validation split 'val' has" in said
        assert "3 videos, too few to choose the best epoch by" in said
    assert train(settings(root), root=root, run="other", dry_run=True)["warning"] in summary["warning"]


def test_a_run_that_learnt_nothing_says_so_and_fails(root):
    # One step, whose learning rate is 0.
    summary = train(settings(root, num_epochs=1, videos_per_batch=6), root=root, run="still")
    assert summary["exit_code"] == 1
    assert "nothing was learnt" in summary["warning"]
    assert "exit_code" not in train(settings(root), root=root, run="moved")


def test_decays_that_hardly_move_are_said(root, caplog):
    assert "alpha (sigmoid) only moves from 0.80 to 0.80" in train(settings(root), root=root, run="r")["warning"]
    assert "--train.schedule_unit run" in caplog.text


def test_a_dry_run_of_train_refuses_what_the_run_refuses(root):
    train(settings(root), root=root, run="r")
    with pytest.raises(ValueError, match=r"train\.num_epochs is 2 there, 3 here"):
        train(settings(root, num_epochs=3), root=root, run="r", dry_run=True)


def test_a_dry_run_of_a_study_refuses_what_the_study_refuses(root):
    base = resolve({"tune": {"num_trials": 3}})
    put_json(open_collection(root).store, "tune/s/spec.json", {"format_version": 1, "kind": "study", "space": {}})
    with pytest.raises(ValueError, match=r"tune/s was written with other settings"):
        tune(base, root=root, study="s", dry_run=True)
    put_json(open_collection(root).store, "tune/a/spec.json", {"format_version": 1, "kind": "study"})
    with pytest.raises(ValueError, match=r"tune/a was written with other settings: kind is 'study' there"):
        ablate(base, root=root, study="a", dry_run=True)
    pbt = resolve({"train": {"num_workers": 2}, "tune": {"scheduler": "pbt"}})
    with pytest.raises(ValueError, match="needs trials of one process"):
        tune(pbt, root=root, study="p", dry_run=True)


def test_a_dry_run_of_index_refuses_what_index_refuses(root):
    train(settings(root), root=root, run="r")
    config = settings(root)
    put_json(open_collection(root).store, "index/i/spec.json", {"format_version": 1, "run": "other"})
    with pytest.raises(ValueError, match="run is 'other' there, 'r' here"):
        index(config.index, root=root, run="r", index="i", dry_run=True)


def reencode(root: str, name: str) -> None:
    """Give the feature set another encoder of the same size, as ingesting anew into a fresh folder would."""
    store = open_collection(root).features().store
    spec = get_json(store, "spec.json")
    spec["teacher"]["name"] = name
    put_json(store, "spec.json", spec)


def test_features_of_another_encoder_are_refused_by_a_run_and_an_index(root):
    train(settings(root), root=root, run="r")
    reencode(root, "another encoder")
    with pytest.raises(ValueError, match=r"other encoders .*teacher\.name is .* there, 'another encoder' here"):
        train(settings(root), root=root, run="r")
    with pytest.raises(ValueError, match="run 'r' was trained on features of other encoders"):
        index(settings(root).index, root=root, run="r", index="i", dry_run=True)


def test_a_run_of_an_earlier_version_is_taken_with_one_line(root):
    train(settings(root), root=root, run="r")
    store = open_run(root, "r").store
    put_json(store, "plan.json", {key: value for key, value in open_run(root, "r").plan().items() if key != "encoders"})
    reencode(root, "another encoder")
    found = index(settings(root).index, root=root, run="r", index="i", dry_run=True)
    assert "did not record the encoders" in found["note"]


def test_a_student_indexes_another_collection_that_has_its_encoders(root, tmp_path):
    train(settings(root), root=root, run="r")
    other = imported(tmp_path / "second", train=2, val=2, test=9)
    found = index(settings(root).index, root=other, run=f"{root}:r", index="i", dry_run=True)
    assert found["videos"] == 13
    assert open_run(other, f"{root}:r").refer_from(open_collection(other).store.uri) == f"{root}:r"
    assert open_run(root, "r").refer_from(open_collection(root).store.uri) == "r"
    reencode(other, "another encoder")
    with pytest.raises(ValueError, match="features of other encoders"):
        index(settings(root).index, root=other, run=f"{root}:r", index="i", dry_run=True)


def test_ingested_features_soften_labels_with_their_encoders_scale(root):
    data, base = TrainingData.of(root, "default"), settings(root)
    assert data.settle(base).train.teacher_scores == "raw"  # imported
    store = open_collection(root).features().store
    spec = get_json(store, "spec.json")
    del spec["imported"]
    put_json(store, "spec.json", spec)
    assert data.settle(base).train.teacher_scores == "raw"  # of a version that did not record the scale
    spec["teacher"]["logit_scale"] = 15.7
    put_json(store, "spec.json", spec)
    assert (data.settle(base).train.teacher_scores, data.settle(base).train.logit_scale) == ("logit_scale", 15.7)
    assert data.settle(settings(root, teacher_scores="raw")).train.teacher_scores == "raw"


def test_a_run_begun_by_an_earlier_version_resumes_with_default_settings(root):
    """Its config.yaml has neither the newer settings nor `auto`."""
    folder, newer = open_run(root, "old"), ("schedule_unit", "sigmoid_k", "distillation", "alpha_decay_rate")
    values = settings(root).model_dump(include={"student", "train"}, mode="json")
    values["train"] = {key: value for key, value in values["train"].items() if key not in newer}
    values["train"]["teacher_scores"] = "raw"
    folder.store.put("config.yaml", json.dumps(values).encode())
    assert train(settings(root), root=root, run="old")["epochs"] == 2


@pytest.mark.parametrize("root", ["s3://bkt/data#1%20", "s3://bkt/a b/?x=1&é", "/tmp/a #1%20"])
def test_ray_tune_reads_the_place_of_a_population_as_that_place(root):
    """Ray hands it to Arrow, which takes a URI apart: `#1` ends its path, `%20` is a space."""
    place = _as_uri(f"{root}/tune/s/population")
    region = "?region=us-east-1" if root.startswith("s3") else ""
    assert pyarrow.fs.FileSystem.from_uri(place + region)[1] == f"{root.removeprefix('s3://')}/tune/s/population"


@pytest.mark.parametrize(
    ("protocol", "split", "said"),
    [
        ("held-out", "train", "was trained on split 'train', so it is not held out"),
        ("held-out", "val", "chose this run's checkpoint"),
        ("train", "test", "protocol train reports the split that was trained on, 'train'"),
    ],
)
def test_a_split_that_training_saw_is_not_reported_as_held_out(root, protocol, split, said):
    train(settings(root), root=root, run="r")
    asked = resolve({"evaluate": {"protocol": protocol}})
    with pytest.raises(ValueError, match=said):
        evaluate(asked.evaluate, asked.index, root=root, run="r", split=split)


def test_a_relevant_video_without_features_counts_alike_in_validation_and_evaluation(root):
    """A query about a video that is there and one that is not: both measure it by the one that is."""
    collection = open_collection(root)
    rows = collection.queries("val").to_pylist()
    for row in rows:
        row["video_ids"] = [*row["video_ids"], "nowhere"]
    collection.query_shards.append(pa.Table.from_pylist(rows, schema.QUERIES))
    train(settings(root, num_epochs=1), root=root, run="r")
    folder = open_run(root, "r")
    job = EvaluationJob(
        resolve({"evaluate": {"protocol": "paper"}}).evaluate,
        folder.config().student,
        collection.features(),
        folder,
        Windowing("whole", folder.config().student.max_frames, 0),
    )
    found = evaluate_split(job, "val", "val", "train")[0]["rows"]["fused"]["sumr"]
    assert found == pytest.approx(folder.best()["fused/sumr"])

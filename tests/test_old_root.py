"""A ROOT that version 0 wrote (see support/old_root.py) is read, searched, evaluated, reported, appended to and resumed
by this version, with the figures that version 0 wrote down."""

import json
import tarfile

import pyarrow.parquet as pq
import pytest
from support.old_root import ARCHIVE, SPLITS, write_encoder
from support.rendering import render

from prvr_ray.collection import declare_spec, open_collection
from prvr_ray.collection.maintenance import status
from prvr_ray.collection.shard_writer import PutShard, raise_put_errors
from prvr_ray.config import EvaluateSettings, IngestSettings, ReportSettings, resolve
from prvr_ray.encoders import describe_encoder
from prvr_ray.evaluation.evaluate import EvaluationJob, evaluate_split
from prvr_ray.features.caption_matching import match_captions
from prvr_ray.features.decode_worker import DecodePlan, DecodeVideos
from prvr_ray.features.encode_worker import EncodePacks, EncodePlan, EncodeQueries
from prvr_ray.features.importing import import_collection
from prvr_ray.features.pending import compare_videos, find_pending_queries, find_pending_videos, read_states
from prvr_ray.features.sources import list_sources
from prvr_ray.index.student_encoder import Windowing
from prvr_ray.notebook import open_root, search
from prvr_ray.report.build import report
from prvr_ray.runs.run import open_run
from prvr_ray.runs.training_data import TrainingData
from prvr_ray.scores.lookup import open_lookup
from prvr_ray.stages.ingest import _make_spec, _names_that_may_differ, ingest
from prvr_ray.stages.train import train
from prvr_ray.video.container import Limits
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling

CONFIG = resolve(
    {
        "student": {"hidden_dim": 8, "num_heads": 2, "max_frames": 8, "max_tokens": 8},
        "train": {"num_epochs": 2, "videos_per_batch": 4},
    }
)
NUM_VIDEOS = sum(SPLITS.values())
ENCODER = "teacher/model.json:teacher/weights.safetensors"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The archive, unpacked; its ROOT is `root`. Its encoder was named by a relative path."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    write_encoder(tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings():
    return IngestSettings(encoder=ENCODER, fps=4.0, segment_frames=4, num_decoders=1)


def written(old, key):
    return json.loads((old / "root" / key).read_text())


def test_status_counts_what_is_there(old):
    found = status("root")
    assert {key: found["videos"][key] for key in ("total", "ingested", "failed", "missing")} == {
        "total": NUM_VIDEOS, "ingested": NUM_VIDEOS, "failed": 0, "missing": 0,
    }  # fmt: skip
    captions = found["captions"]
    assert (captions["total"], captions["encoded"], captions["changed_since_encoded"]) == (28, 28, 0)
    assert found["runs"]["base"] == {"finished": True}
    assert found["scores"]["answers"]["finished"]


def test_captions_are_imported_again_without_a_change(old):
    before = {row["query_id"]: row for row in open_collection("root").queries().to_pylist()}
    summary = import_collection("csv", "captions.csv", "root")
    assert summary["queries"] == {"new": 0, "changed": 0, "unchanged": 28}
    assert {row["query_id"]: row for row in open_collection("root").queries().to_pylist()} == before


def test_released_features_are_imported_again_without_a_change(old):
    num_rows = len(open_collection("released").features().queries())
    summary = import_collection("released", "source", "released")
    assert (summary["queries"]["new"], summary["queries"]["changed"]) == (0, 0)
    found = open_collection("released").features().match_queries(open_collection("released").queries())
    assert (len(found.rows), found.missing, found.stale) == (num_rows, [], [])


def test_its_index_gives_the_answers_that_were_written_down(old):
    expected = {}
    for path in (old / "root/scores/answers").glob("part-*.parquet"):
        for row in pq.read_table(path).to_pylist():
            expected.setdefault(row["query_id"], []).append((row["video_id"], row["score"]))
    lookup = open_lookup(open_root("root"), "main")
    ids = sorted(expected)
    assert len(ids) == 2 * SPLITS["test"]
    for query_id, found in zip(ids, lookup.best(lookup.embed_stored(ids), 3), strict=True):
        assert [answer.video_id for answer in found] == [video_id for video_id, _ in expected[query_id]]
        assert [answer.score for answer in found] == pytest.approx([each for _, each in expected[query_id]], abs=2e-6)
    text = "caption 1 of video 0 of test"
    [query_id] = [row["query_id"] for row in open_collection("root").queries().to_pylist() if row["text"] == text]
    answers = search(open_root("root"), "main", text, 3)
    assert [answer.video_id for answer in answers] == [video_id for video_id, _ in expected[query_id]]


def test_its_evaluation_has_the_figures_that_were_written_down(old):
    run, features = open_run("root", "base"), open_collection("root").features()
    student = run.config().student
    job = EvaluationJob(EvaluateSettings(), student, features, run, Windowing("whole", student.max_frames, 32))
    found = evaluate_split(job, "test", "val", "train")[0]
    expected = written(old, "runs/base/evaluations/test-held-out.json")
    for row, figures in expected["rows"].items():
        assert found["rows"][row] == pytest.approx(figures), row
    assert found["moments"] == pytest.approx(expected["moments"])


def test_it_is_reported_and_its_run_is_finished(old):
    page = report(ReportSettings(num_resamples=20, filmstrips=False), root="root", run="base")
    assert "base" in (old / "root/reports/base/index.html").read_text()
    assert page["output"]
    found = train(CONFIG, root="root", run="base")
    expected = written(old, "runs/base/summary.json")
    assert {key: found[key] for key in expected} == expected


def test_a_finished_ingest_finds_nothing_to_do(old):
    found = ingest(settings(), root="root", videos="videos", dry_run=True)
    assert (found["wanted"]["videos"], found["wanted"]["queries"]) == (0, 0)


def test_rows_of_this_version_are_appended(old):
    """What an ingest's workers do, one after the other: a new video and a new caption beside the old ones."""
    collection = open_collection("root")
    features = collection.features()
    render(old / "videos/test-9.mp4", 25, fps=10, height=24, width=32, gop=5)
    with (old / "captions.csv").open("a") as file:
        file.write("test-9,0.5,1.5,a new caption,test\n")
    assert import_collection("csv", "captions.csv", "root")["queries"] == {"new": 1, "changed": 0, "unchanged": 28}
    spec = _make_spec(settings(), [describe_encoder(ENCODER)], "root")
    declare_spec(features.store, spec, may_differ=_names_that_may_differ(features.store, spec))
    sources, _ = list_sources("videos", settings().extensions)
    match_captions(collection, sources["video_id"].to_pylist())
    current, changed = compare_videos(collection, sources, settings().split_shares, now=2e9)
    collection.video_shards.append(changed)
    work = find_pending_videos(current, read_states(features, current), ())
    assert work["video_id"].to_pylist() == ["test-9.mp4"]
    decode = DecodePlan(
        Sampling(4.0, False, 4),
        (FrameSpec((32, 32), "squash", "bilinear"),),
        Limits(),
        60.0,
        30.0,
        2**31,
        4,
        False,
        0.0,
    )
    encode = EncodePlan((ENCODER,), (0,), 4, 1, 0)
    encode_packs = EncodePacks(encode)
    for pack in DecodeVideos(decode)(work):
        for rows in encode_packs(pack):
            raise_put_errors(PutShard(features.video_shards, "shard-2")(rows))
    raise_put_errors(
        PutShard(features.query_shards, "shard-2")(EncodeQueries(encode)(find_pending_queries(collection, features)))
    )
    assert status("root")["videos"]["ingested"] == NUM_VIDEOS + 1
    captions = status("root")["captions"]
    assert (captions["encoded"], captions.get("unmatched")) == (29, None)
    selection = TrainingData.of("root", "default").select("test", only_captioned=True)
    assert (selection.num_videos, len(selection.queries)) == (SPLITS["test"] + 1, 2 * SPLITS["test"] + 1)
    old_plan = open_run("root", "base").plan()
    assert TrainingData("root", old_plan).select("train", only_captioned=True).num_videos == SPLITS["train"]

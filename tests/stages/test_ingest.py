"""Ingest through a local Ray: what stands afterwards, what a second run does, and vectors equal to plain open_clip."""

import contextlib
import json
import shutil
from collections import Counter

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support import collection_rows as make
from support.rendering import render
from support.small_clip import write_small_clip
from support.sources import Source, as_table

from prvr_ray import cli, schema
from prvr_ray.collection import open_collection, shards
from prvr_ray.config import IngestSettings
from prvr_ray.features.pending import STATES, compare_videos, find_pending_videos
from prvr_ray.stages.ingest import _count, ingest
from prvr_ray.storage import LocalStore


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(["a.mp4", "b.mkv", "more/c.mp4"]):
        render(folder / name, 30 + 10 * number, fps=10)
    (folder / "broken.mp4").write_bytes(b"not a video")
    (folder / "notes.txt").write_text("not a video's name")
    return folder


@pytest.fixture
def settings(encoder):
    return IngestSettings(
        encoder=encoder[0], fps=2.0, segment_frames=4, num_decoders=1, max_failure_share=0.3, batch_frames=5
    )


def features_of(root):
    features = open_collection(str(root)).features()
    return {video.video_id: video for video in features.read_videos(features.complete())}


def test_ingest_encodes_every_frame_as_plain_open_clip_does(tmp_path, in_process, encoder, videos, settings):
    root = tmp_path / "root"
    captions = [
        {"query_id": f"q{n}", "text": f"a red circle {n}", "video_ids": ["c"], "split": "mine"} for n in range(3)
    ]
    open_collection(str(root)).query_shards.append(pa.Table.from_pylist(captions, schema.QUERIES))

    summary = ingest(settings, root=str(root), videos=str(videos))

    assert summary["videos"] == {"total": 4, "ingested": 3, "failed": 1, "by_error_class": {"decode": 1}}
    assert (summary["skipped"], summary["queries_matched"]) == (1, 3)
    assert summary["exit_code"] == 0
    collection = open_collection(str(root))
    assert collection.queries()["video_ids"].to_pylist() == [["more/c.mp4"]] * 3
    assert {row["video_id"] for row in collection.videos().to_pylist() if row["split"] == "mine"} == {"more/c.mp4"}
    found = features_of(root)
    assert {name: len(video.timestamps_s) for name, video in found.items()} == {
        "a.mp4": 6,
        "b.mkv": 8,
        "more/c.mp4": 10,
    }
    for name, video in found.items():
        expected = plain_vectors(encoder[1], videos / name, video.timestamps_s)
        similarity = torch.nn.functional.cosine_similarity(expected, torch.tensor(video.teacher).float())
        assert similarity.min() > 0.9999
    features = open_collection(str(root)).features()
    queries = list(features.read_queries(features.queries()))
    tokens = open_clip.SimpleTokenizer(context_length=16)(["a red circle 1"])
    pooled = encoder[1].encode_text(tokens)[0].detach().numpy()
    assert np.allclose(next(q.teacher for q in queries if q.query_id == "q1"), pooled, atol=2e-3)


def plain_vectors(model, path, timestamps_s, size=32):
    """What a straightforward script would compute: every frame decoded, the nearest ones encoded by open_clip."""
    import av

    config = open_clip.transform.PreprocessCfg(
        size, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", resize_mode="squash"
    )
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    with av.open(str(path)) as container:
        frames = {frame.time: frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
    times = np.array(sorted(frames))
    nearest = [times[np.abs(times - times[0] - t).argmin()] for t in timestamps_s]
    with torch.no_grad():
        return model.encode_image(torch.stack([transform(Image.fromarray(frames[t])) for t in nearest]))


def test_a_second_run_does_what_is_new_and_nothing_else(tmp_path, in_process, videos, settings, monkeypatch):
    root = tmp_path / "root"
    ingest(settings, root=str(root), videos=str(videos))
    before = features_of(root)
    (videos / "more/c.mp4").unlink()
    shutil.copy(videos / "a.mp4", videos / "new.mp4")
    render(videos / "a.mp4", 50, fps=10)

    planned = ingest(settings, root=str(root), videos=str(videos), dry_run=True)
    first = ingest(settings.model_copy(update={"limit": 1}), root=str(root), videos=str(videos), dry_run=True)
    summary = ingest(settings, root=str(root), videos=str(videos))

    assert planned["wanted"]["videos"] == 2
    assert first["wanted"]["videos"] == 1
    assert summary["frames"] == 10 + 6
    after = features_of(root)
    assert {name: len(video.timestamps_s) for name, video in after.items()} == {
        "a.mp4": 10, "b.mkv": 8, "more/c.mp4": 10, "new.mp4": 6
    }  # fmt: skip
    assert np.array_equal(after["new.mp4"].teacher, before["a.mp4"].teacher)
    monkeypatch.setattr("prvr_ray.stages.ingest.plan_pipeline", None)  # a call would fail
    assert ingest(settings, root=str(root), videos=str(videos))["frames"] == 0
    everything = ingest(settings.model_copy(update={"retry": "all"}), root=str(root), videos=str(videos), dry_run=True)
    assert everything["wanted"]["videos"] == 1


def test_a_manifest_s_folder_that_is_away_for_a_while_loses_nothing(
    tmp_path, in_process, videos, settings, monkeypatch
):
    root = tmp_path / "root"
    manifest = tmp_path / "list.csv"
    manifest.write_text("uri\nvideos/a.mp4\nvideos/b.mkv\n")
    ingest(settings, root=str(root), videos=str(manifest))
    before = features_of(root)
    monkeypatch.setattr("prvr_ray.stages.ingest.plan_pipeline", None)  # a call would fail

    videos.rename(tmp_path / "away")
    summary = ingest(settings, root=str(root), videos=str(manifest))
    assert summary["videos"] == {"total": 2, "ingested": 2, "failed": 0, "by_error_class": {}}
    assert (summary["missing"], summary["exit_code"]) == (2, 0)
    assert features_of(root).keys() == before.keys() == {"videos/a.mp4", "videos/b.mkv"}

    (tmp_path / "away").rename(videos)
    summary = ingest(settings, root=str(root), videos=str(manifest))
    assert (summary["frames"], summary["missing"]) == (0, 0)


def test_another_student_encoder_gets_the_same_frames_at_its_own_size(tmp_path, local_ray, encoder, videos, settings):
    root = tmp_path / "root"
    other = write_small_clip(tmp_path / "other", seed=5, image_size=48, embed_dim=16)
    caption = {"query_id": "q", "text": "a red circle", "video_ids": ["a.mp4"]}
    open_collection(str(root)).query_shards.append(pa.Table.from_pylist([caption], schema.QUERIES))
    both = settings.model_copy(update={"student_encoder": other[0]})

    ingest(both, root=str(root), videos=str(videos))

    video = features_of(root)["b.mkv"]
    for vectors, model, size in ((video.teacher, encoder[1], 32), (video.student, other[1], 48)):
        expected = plain_vectors(model, videos / "b.mkv", video.timestamps_s, size)
        assert torch.nn.functional.cosine_similarity(expected, torch.tensor(vectors).float()).min() > 0.9999
    with pytest.raises(ValueError, match=r"student\.weights_sha256 is .* there"):
        ingest(settings, root=str(root), videos=str(videos))
    features = open_collection(str(root)).features()
    (query,) = features.read_queries(features.queries())
    assert (query.teacher.shape, query.tokens.shape) == ((24,), (5, 40))  # start, three words, end


def test_partial_videos_are_counted_named_and_refused_on_request(tmp_path, in_process, videos, settings):
    cut = render(videos / "b.mkv", 200, fps=10)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    root = str(tmp_path / "root")
    counts = ingest(settings, root=root, videos=str(videos))["videos"]
    assert (counts["ingested"], counts["partial"]) == (3, 1)
    assert counts["partial_examples"][0].startswith("b.mkv (")

    strict = settings.model_copy(update={"min_decoded_share": 0.9})
    again = ingest(strict, root=root, videos=str(videos))
    assert again["exit_code"] == 1
    assert "1 videos ('b.mkv') were ingested earlier" in again["warning"]
    counts = ingest(strict, root=str(tmp_path / "other"), videos=str(videos))["videos"]
    assert (counts["ingested"], counts["by_error_class"]) == (2, {"decode": 1, "partial": 1})


def test_real_files_become_features_or_failures_that_add_up(tmp_path, in_process, encoder, test_data, capsys):
    entries = [json.loads(line) for line in (test_data / "videos/manifest.jsonl").read_text().splitlines()]
    bad = {entry["file"] for entry in entries if not entry["frames_decoded"]}
    root = str(tmp_path / "root")
    command = ["ingest", "--videos", str(test_data / "videos"), "--root", root, "--encoder", encoder[0], "--json"]

    assert cli.main(command) == 1  # 8 of 36 failed, more than 5 %

    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    by_class = summary["videos"].pop("by_error_class")
    assert summary["videos"] == {"total": 36, "ingested": 28, "failed": 8}
    assert (sum(by_class.values()), summary["skipped"]) == (8, 3)
    assert summary["warning"].startswith("8 of 36 videos failed: more than --max-failure-share 0.05")
    assert set(by_class) <= {"decode", "empty", "no_video_stream", "too_large"}
    found = features_of(root)
    assert set(found) == {entry["file"] for entry in entries} - bad
    assert summary["frames"] == sum(len(video.teacher) for video in found.values())
    rows = open_collection(root).features().segments().to_pylist()
    failures = {row["video_id"]: row for row in rows if row["error_class"]}
    assert set(failures) == bad
    assert all(row["error"] and "\n" not in row["error"] for row in failures.values())
    assert cli.main([*command, "--max-failure-share", "0.3"]) == 0  # nothing is done again
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (again["frames"], again["videos"]["failed"]) == (0, 8)
    assert "warning" not in again


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": ""}, "--encoder MODEL:PRETRAINED"),
        ({"encoder": "ViT-B-23:openai"}, "ViT-B-32"),
        ({"retry": "often"}, "transient, all, or one of"),
    ],
)
def test_unusable_settings_are_refused_before_anything_is_put(tmp_path, videos, settings, changes, words):
    with pytest.raises(ValueError, match=words):
        ingest(settings.model_copy(update=changes), root=str(tmp_path / "root"), videos=str(videos))
    assert not (tmp_path / "root").exists()


def test_work_of_which_nothing_stands_afterwards_ends_with_exit_code_1(tmp_path):
    """As where every node has a disk of its own under the name of ROOT."""
    collection = open_collection(str(tmp_path / "root"))
    sources = [Source(name, f"/v/{name}", 1, "e") for name in ("done", "failed", "lost")]
    current, changed = compare_videos(collection, as_table(sources), {"train": 1.0}, now=1.0)
    collection.video_shards.append(changed)
    features = collection.features()
    rows = [make.segment("done"), make.failure("failed")]
    features.video_shards.append(pa.Table.from_pylist(rows, schema.FEATURE_VIDEOS))
    work = find_pending_videos(current, STATES.empty_table(), ())
    counts = _count(features, current, work, IngestSettings(max_failure_share=0.5))
    assert counts["exit_code"] == 1
    assert "1 videos ended with neither features nor a failure (e.g. 'lost')" in counts["warning"]
    assert _count(features, current, current.slice(0, 0), IngestSettings(max_failure_share=0.5))["exit_code"] == 0


def test_a_moved_root_and_moved_weights_go_on_and_shards_are_read_at_most_twice(
    tmp_path, in_process, encoder, videos, settings, monkeypatch
):
    root, moved = tmp_path / "root", tmp_path / "moved"
    caption = {"query_id": "q", "text": "a red circle", "video_ids": ["a.mp4"]}
    open_collection(str(root)).query_shards.append(pa.Table.from_pylist([caption], schema.QUERIES))
    read, counts = shards.read_table, Counter()
    monkeypatch.setattr(
        shards, "read_table", lambda store, key, columns: counts.update([key]) or read(store, key, columns)
    )
    ingest(settings, root=str(root), videos=str(videos))
    assert max(counts.values()) <= 2
    root.rename(moved)
    weights = write_small_clip(tmp_path / "elsewhere")[0]
    shutil.copy(videos / "a.mp4", videos / "new.mp4")
    summary = ingest(settings.model_copy(update={"encoder": weights}), root=str(moved), videos=str(videos))
    assert summary["frames"] == 6
    assert max(counts.values()) <= 2 * 2  # in two runs


def test_folders_are_listed_before_and_after_the_work(tmp_path, encoder, videos, settings, monkeypatch):
    """Ray is not started: of the work only what it puts is needed here."""
    root = str(tmp_path / "root")
    caption = {"query_id": "q", "text": "a red circle", "video_ids": ["a"], "split": "test"}
    open_collection(root).query_shards.append(pa.Table.from_pylist([caption], schema.QUERIES))

    class Pipeline:
        def ingest_videos(self, work, shards, run, declare):
            rows = [make.failure(row["video_id"], added_at=row["added_at"]) for row in work.to_pylist()]
            shards.append(pa.Table.from_pylist(rows, schema.FEATURE_VIDEOS))
            return 0

        def ingest_queries(self, queries, shards, run, declare):
            pass

    monkeypatch.setattr("prvr_ray.stages.ingest.connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr("prvr_ray.stages.ingest.plan_pipeline", lambda *_: Pipeline())
    listed, list_all = Counter(), LocalStore.list
    monkeypatch.setattr(
        LocalStore, "list", lambda store, *prefix: listed.update([store.uri]) or list_all(store, *prefix)
    )
    summary = ingest(settings, root=root, videos=str(videos))
    assert (summary["videos"]["failed"], summary["queries_matched"]) == (4, 1)
    of = {uri.removeprefix(f"{root}/"): count for uri, count in listed.items() if uri.startswith(root)}
    # A third time where this run itself has put a shard meanwhile: new videos, matched captions.
    assert of == {"videos": 3, "queries": 3, "features/default/videos": 2, "features/default/queries": 1}


def test_a_run_that_puts_nothing_leaves_no_spec(tmp_path, in_process, videos, settings, monkeypatch):
    def fail(pipeline):
        raise ValueError("no CPUs")

    monkeypatch.setattr("prvr_ray.stages.ingest_pipeline.Pipeline.fit_workers", fail)
    with pytest.raises(ValueError, match="no CPUs"):
        ingest(settings, root=str(tmp_path / "root"), videos=str(videos))
    assert not (tmp_path / "root/features/default/spec.json").exists()

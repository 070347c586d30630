"""Imports into a collection: what readers see afterwards, what is left out by name, and what a repetition adds."""

import json
import subprocess
import sys

import boto3
import numpy as np
import pyarrow as pa
import pytest
from support import released_layout

from prvr_ray import schema
from prvr_ray.annotations.released_vectors import FrameFile
from prvr_ray.annotations.splits import split_of
from prvr_ray.collection import open_collection
from prvr_ray.collection.maintenance import remove
from prvr_ray.features import importing
from prvr_ray.features.importing import import_collection

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "root")


def add_videos(root, **splits):
    """Register videos, `dir/a.mp4` for the keyword dir__a."""
    rows = [
        {"video_id": f"{name.replace('__', '/')}.mp4", "split": split, "added_at": 5.0, "removed": False}
        for name, split in splits.items()
    ]
    table = pa.Table.from_pylist(rows, schema.VIDEOS)
    open_collection(root).video_shards.append(table)


def add_captions(tmp_path, root, *lines, file="captions.jsonl", **options):
    (tmp_path / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return import_collection("jsonl", str(tmp_path / file), root, **options)


def splits(root):
    collection = open_collection(root)
    videos = {row["video_id"]: row["split"] for row in collection.videos().to_pylist()}
    return videos, {row["query_id"]: row["split"] for row in collection.queries().to_pylist()}


def num_shards(root):
    features = open_collection(root).features()
    folders = (features.collection.video_shards, features.collection.query_shards)
    return sum(len(folder.live()) for folder in (*folders, features.video_shards, features.query_shards))


def test_captions_of_a_real_file_stand_in_the_queries_table(test_data, root):
    summary = import_collection("charades-sta", str(test_data / "annotations"), root)
    assert summary["queries"] == {"new": 16128, "changed": 0, "unchanged": 0}
    assert summary["videos"] == 5338 + 1334
    assert summary["windows_with"] == {"start_after_end": 4, "past_the_end": 1803 + 561}
    collection = open_collection(root)
    assert (len(collection.queries("train")), len(collection.queries("test"))) == (12408, 3720)
    train = collection.queries("train").to_pylist()
    first = next(row for row in train if row["query_id"] == "charades-sta-annotations/AO8RW#0")
    assert first["text"] == "a person is putting a book on a shelf."
    assert first["moments"] == [{"video_id": "AO8RW", "start_s": 0.0, "end_s": 6.9}]


def test_a_repeated_import_puts_nothing_and_an_edited_one_only_what_changed(tmp_path, root):
    lines = [{"query_id": f"q{n}", "video_id": "a.mp4", "text": f"text {n}", "split": "val"} for n in range(3)]
    assert add_captions(tmp_path, root, *lines)["queries"] == {"new": 3, "changed": 0, "unchanged": 0}
    assert add_captions(tmp_path, root, *lines)["queries"] == {"new": 0, "changed": 0, "unchanged": 3}
    assert num_shards(root) == 1
    lines[1]["text"] = "edited"
    assert add_captions(tmp_path, root, *lines)["queries"] == {"new": 0, "changed": 1, "unchanged": 2}
    assert open_collection(root).queries()["text"].to_pylist() == ["text 0", "edited", "text 2"]


def test_names_in_captions_become_the_ids_of_the_collections_videos(tmp_path, root):
    add_videos(root, kitchen__a="val", b="val", x__twice="val", y__twice="val")
    names = ["a", "a.mp4", "kitchen/a.mp4", "b", "twice", "nowhere"]
    lines = [
        {"query_id": f"q{n}", "video_id": name, "text": "t", "split": "val", "start_s": 0, "end_s": 1}
        for n, name in enumerate(names)
    ]
    summary = add_captions(tmp_path, root, *lines)
    rows = open_collection(root).queries().to_pylist()
    expected = ["kitchen/a.mp4", "kitchen/a.mp4", "kitchen/a.mp4", "b.mp4", "twice", "nowhere"]
    assert [row["video_ids"] for row in rows] == [[video_id] for video_id in expected]
    assert [row["moments"][0]["video_id"] for row in rows] == expected
    assert summary["left_out"] == {"captions_of_unknown_video": {"count": 2, "such_as": ["q4", "q5"]}}


def test_captions_may_come_before_the_videos(tmp_path, root):
    summary = add_captions(tmp_path, root, {"video_id": "a", "text": "t"})
    assert summary["left_out"] == {}
    assert splits(root)[1] == {"jsonl-captions/a#0": split_of("a", SHARES)}
    add_videos(root, a="test")
    summary = add_captions(tmp_path, root, {"video_id": "a", "text": "t"})
    assert (summary["queries"]["changed"], splits(root)[1]) == (1, {"jsonl-captions/a#0": "test"})


def test_a_caption_without_a_split_gets_that_of_its_video(tmp_path, root):
    add_videos(root, a="test", b="train")
    add_captions(tmp_path, root, *({"query_id": name, "video_id": name, "text": "t"} for name in ("a", "b", "c")))
    assert splits(root)[1] == {"a": "test", "b": "train", "c": split_of("c", SHARES)}


def test_videos_move_to_the_split_of_their_captions_and_stay_the_same_source(tmp_path, root):
    add_videos(root, a="train", b="train")
    summary = add_captions(tmp_path, root, {"video_id": "a", "text": "t", "query_id": "q"}, file="my_test.jsonl")
    assert summary["videos_resplit"] == 1
    assert splits(root) == ({"a.mp4": "test", "b.mp4": "train"}, {"q": "test"})
    assert set(open_collection(root).videos()["added_at"].to_pylist()) == {5.0}


def test_captions_of_one_video_in_two_splits_are_refused_and_nothing_is_put(tmp_path, root):
    add_captions(tmp_path, root, {"video_id": "a", "text": "t"}, file="train.jsonl")
    with pytest.raises(ValueError, match=r"video a has captions in the splits train and test \(query jsonl-test/a#0\)"):
        add_captions(tmp_path, root, {"video_id": "a", "text": "u"}, file="test.jsonl")
    assert len(open_collection(root).queries()) == 1


def test_a_malformed_line_leaves_nothing_behind(tmp_path, root):
    with pytest.raises(ValueError, match=r"captions\.jsonl:2: unknown column x"):
        add_captions(tmp_path, root, {"video_id": "a", "text": "t"}, {"video_id": "a", "text": "t", "x": 1})
    assert not (tmp_path / "root").exists()


def test_released_features_are_read_back_as_they_were_released(tmp_path, root):
    world = released_layout.render(tmp_path / "source")
    summary = import_collection("released", str(tmp_path / "source"), root)
    assert (summary["videos"], summary["left_out"]) == ({"imported": 12, "failed": 0}, {})
    collection = open_collection(root)
    features = collection.features()
    spec = features.spec()
    assert (spec["imported"], spec["shared"]) == ("released", False)
    assert (spec["teacher"]["dim"], spec["student"]["dim"], spec["student"]["token_dim"]) == (16, 24, 20)
    videos = {video.video_id: video for video in features.read_videos(features.complete())}
    assert set(videos) == set(world.frames)
    for video_id, video in videos.items():
        np.testing.assert_array_equal(video.student, world.frames[video_id].astype(np.float16))
        np.testing.assert_array_equal(video.teacher, world.teacher_frames[video_id].astype(np.float16))
    queries = {query.query_id: query for query in features.read_queries(features.queries())}
    for split, captions in world.captions.items():
        rows = {row["query_id"]: row for row in collection.queries(split).to_pylist()}
        assert set(rows) == set(captions)
        for caption_id, row in rows.items():
            assert row["video_ids"] == [caption_id.partition("#")[0]]
            np.testing.assert_array_equal(queries[caption_id].tokens, world.tokens[caption_id].astype(np.float16))
            teacher_D = world.teacher_queries[caption_id][0].astype(np.float16)
            np.testing.assert_array_equal(queries[caption_id].teacher, teacher_D)
    assert splits(root)[0] == {video_id: video_id.split("_")[1] for video_id in world.frames}


def test_a_repeated_import_of_released_features_reads_no_vectors(tmp_path, root, monkeypatch):
    released_layout.render(tmp_path / "source")
    monkeypatch.setattr(importing, "_SHARD_BYTES", 2000)
    import_collection("released", str(tmp_path / "source"), root)
    before = num_shards(root)
    assert before > 6  # many shards were put although the data is small
    monkeypatch.setattr("prvr_ray.annotations.released_vectors._checked", pytest.fail)
    again = import_collection("released", str(tmp_path / "source"), root)
    assert again["queries"]["unchanged"] == len(open_collection(root).queries())
    assert num_shards(root) == before


def test_an_import_that_was_cut_short_goes_on(tmp_path, root, monkeypatch):
    world = released_layout.render(tmp_path / "source")
    monkeypatch.setattr(importing, "_SHARD_BYTES", 2000)
    read = FrameFile.read
    videos_read = []

    def read_five(file, video_id):
        videos_read.append(video_id)
        if len(videos_read) > 5:
            raise InterruptedError
        return read(file, video_id)

    with monkeypatch.context() as patch:
        patch.setattr(FrameFile, "read", read_five)
        with pytest.raises(InterruptedError):
            import_collection("released", str(tmp_path / "source"), root)
    features = open_collection(root).features()
    assert 0 < len(features.complete()) <= 5
    assert import_collection("released", str(tmp_path / "source"), root)["videos"]["imported"] == 12
    rows = features.video_shards.scan(["video_id"])["video_id"].to_pylist()
    assert sorted(rows) == sorted(world.frames)  # nothing stands twice


def test_released_files_that_changed_are_imported_anew(tmp_path, root):
    world = released_layout.render(tmp_path / "source")
    world.frames["v_train_0"][0, 0] = np.nan
    released_layout.write(world)
    first = import_collection("released", str(tmp_path / "source"), root)
    assert first["videos"] == {"imported": 11, "failed": 1}
    assert first["left_out"]["video_not_finite"] == {"count": 1, "such_as": ["v_train_0"]}
    world.frames["v_train_0"][0, 0] = 7
    released_layout.write(world)
    second = import_collection("released", str(tmp_path / "source"), root)
    assert (second["videos"], second["left_out"]) == ({"imported": 12, "failed": 0}, {})
    features = open_collection(root).features()
    video = next(v for v in features.read_videos(features.complete()) if v.video_id == "v_train_0")
    assert video.student[0, 0] == 7
    assert set(open_collection(root).queries()["query_id"].to_pylist()) == set(world.tokens)


def test_videos_left_out_are_failures_and_take_their_captions_with_them(tmp_path, root):
    world = released_layout.render(tmp_path / "source")
    world.teacher_frames["v_test_1"][:] = np.inf
    del world.tokens["v_val_0#enc#0"]
    released_layout.write(world)
    lost = [caption_id for caption_id in world.captions["test"] if caption_id.startswith("v_test_1#")]
    for _ in range(2):  # a repetition names them again
        summary = import_collection("released", str(tmp_path / "source"), root)
        assert summary["left_out"] == {
            "video_not_finite": {"count": 1, "such_as": ["v_test_1"]},
            "caption_of_unusable_video": {"count": len(lost), "such_as": lost},
            "caption_missing": {"count": 1, "such_as": ["v_val_0#enc#0"]},
        }
    collection = open_collection(root)
    failed = collection.features().segments().filter(collection.features().segments()["failed"])
    assert failed["video_id"].to_pylist() == ["v_test_1"]
    assert failed["error_class"].to_pylist() == ["not_finite"]
    captions = {caption_id for split in world.captions.values() for caption_id in split}
    assert set(collection.queries()["query_id"].to_pylist()) == captions - {*lost, "v_val_0#enc#0"}
    listed = json.loads((tmp_path / "root" / "features" / "default" / "left-out.json").read_text())
    assert listed["caption_of_unusable_video"] == lost


def test_a_split_whose_videos_all_fail_is_an_error_that_says_why(tmp_path, root):
    world = released_layout.render(tmp_path / "source")
    for number in range(3):
        world.frames[f"v_val_{number}"][:] = np.nan
    released_layout.write(world)
    with pytest.raises(ValueError, match=r"split val is empty: .*video_not_finite: 3, as v_val_"):
        import_collection("released", str(tmp_path / "source"), root)
    assert len(open_collection(root).queries()) == 0


def test_a_removed_video_is_not_imported_again(tmp_path, root):
    released_layout.render(tmp_path / "source")
    import_collection("released", str(tmp_path / "source"), root)
    remove(root, "v_train_2")
    summary = import_collection("released", str(tmp_path / "source"), root)
    assert summary["left_out"]["video_removed"] == {"count": 1, "such_as": ["v_train_2"]}
    collection = open_collection(root)
    assert "v_train_2" not in collection.videos()["video_id"].to_pylist()
    assert "v_train_2" not in collection.features().complete()["video_id"].to_pylist()


def test_features_of_other_dimensions_are_refused_with_the_difference(tmp_path, root):
    released_layout.render(tmp_path / "source")
    import_collection("released", str(tmp_path / "source"), root)
    released_layout.render(tmp_path / "other", video_dim=32)
    with pytest.raises(ValueError, match=r"student\.dim is 24 there, 32 here"):
        import_collection("released", str(tmp_path / "other"), root)


def test_source_and_collection_may_lie_in_a_bucket(tmp_path, s3_root):
    world = released_layout.render(tmp_path / "source")
    bucket = s3_root.removeprefix("s3://").partition("/")[0]
    for path in (tmp_path / "source").rglob("*.*"):
        boto3.client("s3").upload_file(str(path), bucket, f"in/source/{path.relative_to(tmp_path / 'source')}")
    summary = import_collection("released", f"s3://{bucket}/in/source", s3_root)
    assert summary["videos"]["imported"] == len(world.frames)
    with pytest.raises(ValueError, match=f"there are no files at s3://{bucket}/in/sour"):
        import_collection("released", f"s3://{bucket}/in/sour", s3_root)


def test_a_key_that_leads_out_of_the_source_is_refused(tmp_path, s3_root):
    bucket = s3_root.removeprefix("s3://").partition("/")[0]
    boto3.client("s3").put_object(Bucket=bucket, Key="in/source/../../../outside.jsonl", Body=b"{}")
    with pytest.raises(ValueError, match="leads out of the folder"):
        import_collection("jsonl", f"s3://{bucket}/in/source", s3_root)


def test_imports_need_neither_ray_nor_torch():
    probe = "import sys, prvr_ray.features.importing; sys.exit(str({'ray', 'torch', 'av'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert ran.stderr.strip() == "set()"

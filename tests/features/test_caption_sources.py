"""Importing captions again, under other names and from several files: nothing is lost, and nothing stays by mistake."""

import json

import pyarrow as pa
import pytest
from support import collection_rows as make

from prvr_ray.annotations.splits import split_of
from prvr_ray.collection import caption_sources, open_collection
from prvr_ray.collection.maintenance import remove, status
from prvr_ray.config import IngestSettings
from prvr_ray.features.importing import import_collection
from prvr_ray.stages.doctor import _check_captions
from prvr_ray.stages.ingest import _unmatched


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "root")


def add(tmp_path, root, file, *rows, **options):
    """Import rows of (query_id or None, video_id, text) as jsonl; returns the summary."""
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    keys = ("query_id", "video_id", "text")
    lines = [json.dumps({k: v for k, v in zip(keys, row, strict=True) if v is not None}) for row in rows]
    path.write_text("\n".join(lines))
    return import_collection("jsonl", str(path), root, **options)


def captions(root):
    return {row["query_id"]: row["text"] for row in open_collection(root).queries().to_pylist()}


def test_ids_that_two_files_count_from_zero_are_refused_naming_both(tmp_path, root):
    add(tmp_path, root, "train.jsonl", ("0", "a", "a dog"), ("1", "b", "a cat"))
    with pytest.raises(ValueError, match=r"'0' names two captions: 'a cow' of c in source 'jsonl-test', 'a dog' of a"):
        add(tmp_path, root, "test.jsonl", ("0", "c", "a cow"), ("1", "d", "a horse"))
    with pytest.raises(ValueError, match=r"'1' names two captions: 'a man' of b .*'jsonl-train'"):
        add(tmp_path, root, "more.jsonl", ("1", "b", "a man"))
    assert captions(root) == {"0": "a dog", "1": "a cat"}


def test_generated_ids_begin_with_the_source_s_name(tmp_path, root):
    assert add(tmp_path, root, "train.jsonl", (None, "a", "a dog"))["source"] == "jsonl-train"
    add(tmp_path, root, "train2.jsonl", (None, "a", "a man"), name="mine")
    assert captions(root) == {"jsonl-train/a#0": "a dog", "mine/a#0": "a man"}


def test_a_deleted_row_deletes_its_caption_and_no_other_changes_its_id(tmp_path, root):
    rows = [(None, "a", text) for text in ("one", "two", "three", "four")]
    add(tmp_path, root, "c.jsonl", *rows)
    before = captions(root)
    summary = add(tmp_path, root, "c.jsonl", rows[0], rows[2], rows[3])
    assert (summary["queries"], summary["queries_removed"]) == ({"new": 0, "changed": 0, "unchanged": 3}, 1)
    assert captions(root) == {query_id: text for query_id, text in before.items() if text != "two"}
    summary = add(tmp_path, root, "c.jsonl", rows[0], (None, "a", "edited"), rows[3], (None, "a", "five"))
    assert sorted(captions(root).values()) == ["edited", "five", "four", "one"]
    assert captions(root)["jsonl-c/a#0"] == "one"
    assert captions(root)["jsonl-c/a#3"] == "four"


def test_a_re_sorted_file_changes_nothing(tmp_path, root):
    rows = [(None, video, text) for video in "ab" for text in ("one", "two", "two")]
    add(tmp_path, root, "c.jsonl", *rows)
    before = captions(root)
    assert add(tmp_path, root, "c.jsonl", *reversed(rows))["queries"] == {"new": 0, "changed": 0, "unchanged": 6}
    assert captions(root) == before
    assert len(before) == 6


def test_the_same_content_under_another_name_is_recognised(tmp_path, root):
    rows = [(None, "a", "one"), (None, "b", "two"), ("own", "b", "three")]
    add(tmp_path, root, "c.jsonl", *rows)
    summary = add(tmp_path, root, "copy.jsonl", *rows)
    assert summary["queries"] == {"new": 0, "changed": 0, "unchanged": 3}
    assert summary["same_captions_in"] == ["jsonl-c"]
    assert add(tmp_path, root, "copy.jsonl", *rows[:2])["queries_removed"] == 0  # the other source still has it
    assert len(captions(root)) == 3


def test_a_replacement_that_removes_most_of_a_source_needs_a_word(tmp_path, root):
    rows = [(None, "a", f"text {n}") for n in range(5)]
    add(tmp_path, root, "train/captions.jsonl", *rows)
    with pytest.raises(ValueError, match=r"'jsonl-captions' .* would remove 5 of its 5 captions .*--replace.*--name"):
        add(tmp_path, root, "test/captions.jsonl", (None, "b", "another"))
    assert len(captions(root)) == 5
    add(tmp_path, root, "test/captions.jsonl", (None, "b", "another"), name="test")
    assert len(captions(root)) == 6
    assert add(tmp_path, root, "train/captions.jsonl", *rows[:2], replace=True)["queries_removed"] == 3
    assert sorted(captions(root).values()) == ["another", "text 0", "text 1"]


def test_captions_and_sources_are_removed(tmp_path, root):
    add(tmp_path, root, "c.jsonl", ("q0", "a", "one"), ("q1", "a", "two"), ("q2", "a", "three"))
    add(tmp_path, root, "d.jsonl", ("q2", "a", "three"), ("q3", "a", "four"))
    assert status(root)["captions"]["by_source"] == {"jsonl-c": 3, "jsonl-d": 2}
    remove(root, query="q0")
    assert sorted(captions(root)) == ["q1", "q2", "q3"]
    assert remove(root, source="jsonl-c")["queries_removed"] == 1
    assert sorted(captions(root)) == ["q2", "q3"]
    assert status(root)["captions"]["by_source"] == {"jsonl-d": 2}
    for wrong in ({"query": "q0"}, {"source": "jsonl-c"}, {}, {"query": "q2", "source": "jsonl-d"}):
        with pytest.raises(ValueError, match=r"q0.* not in|no source 'jsonl-c'.*jsonl-d|one of VIDEO_ID, --query"):
            remove(root, **wrong)
    add(tmp_path, root, "c.jsonl", ("q0", "a", "one"))  # an import brings a removed caption back
    assert sorted(captions(root)) == ["q0", "q2", "q3"]


def test_captions_that_an_earlier_version_imported_keep_their_ids(tmp_path, root):
    collection = open_collection(root)
    split = split_of("a", IngestSettings().split_shares)
    old = [make.query(name, text, split=split) for name, text in (("c/a#0", "one"), ("c/a#1", "two"), ("q", "three"))]
    make.put(collection.query_shards, *old)
    rows = [(None, "a", "one"), (None, "a", "two"), ("q", "a", "three")]
    assert add(tmp_path, root, "c.jsonl", *rows)["queries"] == {"new": 0, "changed": 0, "unchanged": 3}
    add(tmp_path, root, "c.jsonl", (None, "a", "one"), (None, "a", "edited"), ("q", "a", "edited too"))
    assert captions(root) == {"c/a#0": "one", "c/a#1": "edited", "q": "edited too"}
    assert set(caption_sources(collection).captions["jsonl-c"]) == {"c/a#0", "c/a#1", "q"}
    collection = open_collection(str(tmp_path / "other"))
    make.put(collection.query_shards, make.query("q", "a text", ("a",)))
    with pytest.raises(ValueError, match=r"'q' names two captions.*an import by an earlier version"):
        add(tmp_path, str(tmp_path / "other"), "d.jsonl", ("q", "b", "another"))


def test_an_import_that_was_killed_is_repeated_as_if_it_had_not_been(tmp_path, root, monkeypatch):
    rows = [(None, "a", f"text {n}") for n in range(4)]
    add(tmp_path, root, "c.jsonl", *rows)
    (shard,) = (tmp_path / "root/imports").glob("*.parquet")
    add(tmp_path, root, "c.jsonl", *rows[:3], (None, "b", "new"))
    for newer in set((tmp_path / "root/imports").glob("*.parquet")) - {shard}:
        newer.unlink()  # its record was still to come
    assert add(tmp_path, root, "c.jsonl", *rows[:3], (None, "b", "new"))["queries"]["unchanged"] == 4
    assert sorted(captions(root).values()) == ["new", "text 0", "text 1", "text 2"]


def test_tombstones_outlive_a_compaction(tmp_path, root):
    from prvr_ray.collection.maintenance import compact

    add(tmp_path, root, "c.jsonl", ("q0", "a", "one"), ("q1", "a", "two"))
    remove(root, query="q0")
    compact(root)
    assert sorted(captions(root)) == ["q1"]
    assert isinstance(open_collection(root).queries("train"), pa.Table)


def test_doctor_and_ingest_name_captions_that_match_no_video(tmp_path, root):
    collection = open_collection(root)
    add(tmp_path, root, "c.jsonl", (None, "kitchn/a", "one"), (None, "b", "two"))
    assert "unmatched" not in status(root)["captions"]  # videos are still to come
    assert _check_captions(root) == []
    make.put(collection.video_shards, make.video("kitchen/a.mp4"), make.video("b"))
    expected = {"captions": 1, "video_names": 1, "such_as": ["kitchn/a (nearest: kitchen/a.mp4)"]}
    assert _unmatched(collection) == {"unmatched": expected}
    assert status(root)["captions"]["unmatched"] == expected
    [check] = _check_captions(root)
    assert not check.ok
    assert "1 of 2 name no video of the collection (kitchn/a (nearest: kitchen/a.mp4))" in check.detail
    summary = add(tmp_path, root, "c.jsonl", (None, "kitchen\\A", "one"), (None, "./b", "two"))
    assert "unmatched" not in summary
    assert _check_captions(root)[0].ok

"""Captions that name videos by parts of their ids: import and ingest give the same collection in either order."""

import json

import pyarrow as pa
import pytest
from support.sources import Source, as_table

from prvr_ray import schema
from prvr_ray.collection import open_collection, unmatched_captions
from prvr_ray.collection.maintenance import remove
from prvr_ray.features.caption_matching import VideoNames, match_captions
from prvr_ray.features.importing import import_collection
from prvr_ray.features.pending import compare_videos

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
SOURCES = [
    Source(video_id, f"/v/{video_id}", 1, "e") for video_id in ("kitchen/a.mp4", "b.mp4", "x/twice.mp4", "y/twice.mp4")
]
NAMES = ["a", "a.mp4", "kitchen/a.mp4", "b", "twice", "nowhere"]


@pytest.fixture
def captions(tmp_path):
    lines = [
        {"query_id": f"q{n}", "video_id": name, "text": "t", "split": "test", "start_s": 0, "end_s": n + 1}
        for n, name in enumerate(NAMES)
    ]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def put_videos(collection, sources=SOURCES):
    """What ingest does before it decodes."""
    num_matched = match_captions(collection, [source.video_id for source in sources])
    _, changed = compare_videos(collection, as_table(sources), SHARES, now=1.0)
    collection.video_shards.append(changed)
    return num_matched


def put_queries(collection, **splits):
    rows = [{"query_id": f"q-{name}", "text": "t", "video_ids": [name], "split": splits[name]} for name in splits]
    collection.query_shards.append(pa.Table.from_pylist(rows, schema.QUERIES))


def test_import_then_ingest_gives_what_ingest_then_import_gives(tmp_path, captions):
    first, second = (open_collection(str(tmp_path / name)) for name in ("first", "second"))
    import_collection("jsonl", captions, first.store.uri)
    assert put_videos(first) == 3
    put_videos(second)
    import_collection("jsonl", captions, second.store.uri)

    assert first.queries().to_pylist() == second.queries().to_pylist()
    assert first.videos().to_pylist() == second.videos().to_pylist()
    expected = ["kitchen/a.mp4", "kitchen/a.mp4", "kitchen/a.mp4", "b.mp4", "twice", "nowhere"]
    assert first.queries()["video_ids"].to_pylist() == [[video_id] for video_id in expected]
    assert [moments[0]["video_id"] for moments in first.queries()["moments"].to_pylist()] == expected
    splits = {row["video_id"]: row["split"] for row in first.videos().to_pylist()}
    assert (splits["kitchen/a.mp4"], splits["b.mp4"]) == ("test", "test")
    assert import_collection("jsonl", captions, first.store.uri)["queries"]["unchanged"] == len(NAMES)
    assert put_videos(first) == 0


def test_videos_that_stand_move_to_the_split_of_captions_that_are_matched_late(tmp_path):
    collection = open_collection(str(tmp_path))
    put_videos(collection)
    put_queries(collection, a="mine")  # put by an import that did not know the videos
    assert put_videos(collection, []) == 1
    assert {row["video_id"]: row["split"] for row in collection.videos().to_pylist()}["kitchen/a.mp4"] == "mine"


def test_captions_in_two_splits_under_two_names_of_a_video_change_nothing(tmp_path):
    collection = open_collection(str(tmp_path))
    put_queries(collection, a="train", **{"kitchen/a.mp4": "test"})
    with pytest.raises(ValueError, match=r"video kitchen/a\.mp4 has captions in the splits train and test"):
        match_captions(collection, ["kitchen/a.mp4"])
    assert collection.queries()["video_ids"].to_pylist() == [["a"], ["kitchen/a.mp4"]]


def test_captions_are_not_matched_with_removed_videos(tmp_path):
    collection = open_collection(str(tmp_path))
    put_videos(collection)
    remove(str(tmp_path), "b.mp4")
    put_queries(collection, b="test")
    assert put_videos(collection) == 0


def test_captions_of_no_video_stay_as_they_are(tmp_path):
    collection = open_collection(str(tmp_path))
    rows = [{"query_id": "q", "text": "t", "video_ids": None, "moments": None}]
    collection.query_shards.append(pa.Table.from_pylist(rows, schema.QUERIES))
    assert match_captions(collection, ["a.mp4"]) == 0
    assert match_captions(open_collection(str(tmp_path / "empty")), []) == 0


IDS = {"kitchen/Müller_01.mp4", "b.mp4", "x/twice.mp4", "y/twice.mp4", "Big.mp4", "big.mp4", "Only.MKV"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kitchen/Müller_01.mp4", "kitchen/Müller_01.mp4"),
        ("./kitchen/Müller_01.mp4", "kitchen/Müller_01.mp4"),
        ("kitchen\\Müller_01.mp4", "kitchen/Müller_01.mp4"),
        (".\\kitchen//Müller_01.mp4", "kitchen/Müller_01.mp4"),
        ("  kitchen/Müller_01.mp4 ", "kitchen/Müller_01.mp4"),
        ("kitchen/Mu\u0308ller_01.mp4", "kitchen/Müller_01.mp4"),
        ("kitchen/Müller_01", "kitchen/Müller_01.mp4"),
        ("Müller_01.mp4", "kitchen/Müller_01.mp4"),
        ("Müller_01", "kitchen/Müller_01.mp4"),
        ("KITCHEN/müller_01.MP4", "kitchen/Müller_01.mp4"),
        ("müller_01", "kitchen/Müller_01.mp4"),
        ("/data/videos/kitchen/Müller_01.mp4", "kitchen/Müller_01.mp4"),
        ("only.mkv", "Only.MKV"),
        ("big.mp4", "big.mp4"),
        # several may be meant, or another video: they stay as they are
        ("BIG.mp4", "BIG.mp4"),
        ("twice", "twice"),
        ("TWICE.mp4", "TWICE.mp4"),
        ("x/twice", "x/twice.mp4"),
        ("bath/Müller_01.mp4", "bath/Müller_01.mp4"),
        ("b.avi", "b.avi"),
        ("other/b.mp4", "other/b.mp4"),
        ("", ""),
    ],
)
def test_a_spelling_with_one_meaning_finds_its_video(name, expected):
    assert VideoNames(IDS).find(name) == expected


def test_captions_of_no_video_are_counted_with_the_nearest_names():
    queries = pa.table(
        {"query_id": ["q0", "q1", "q2", "q3"], "video_ids": [["b.mp4"], ["kitchn/a.mp4"], ["zzz"], None]}
    )
    found = unmatched_captions(queries, {"kitchen/a.mp4", "b.mp4"})
    assert found == {"captions": 2, "video_names": 2, "such_as": ["kitchn/a.mp4 (nearest: kitchen/a.mp4)", "zzz"]}
    assert unmatched_captions(queries.slice(0, 1), {"b.mp4"}) is None

"""Captions that were edited after they were encoded: no reader takes their old vectors for the new text."""

import hashlib
import shutil

import pyarrow as pa
import pytest
from support import collection_rows as make
from support import released_layout, served
from support.planted import plant

from prvr_ray import schema
from prvr_ray.collection import EncodedQueries, declare_spec, open_collection
from prvr_ray.config import IndexSettings
from prvr_ray.evaluation.split import query_vectors
from prvr_ray.features.importing import import_collection
from prvr_ray.index.index import IndexFolder
from prvr_ray.runs.training_data import TrainingData
from prvr_ray.scores.lookup import open_lookup
from prvr_ray.scores.plan import find_queries


def edit(root, *query_ids, text="an edited caption"):
    """Give captions another text, as an import of an edited file does; nothing is encoded."""
    collection = open_collection(str(root))
    rows = [row | {"text": f"{text} {row['query_id']}"} for row in collection.queries().to_pylist()]
    make.put(collection.query_shards, *(row for row in rows if row["query_id"] in query_ids))


def encode(features, query_id, text, files=""):
    """A row as a writer of that version of this program makes it; the hash is spelt out here."""
    value = hashlib.sha256((f"{files} " if files else "").encode() + text.encode()).hexdigest()[:16]
    make.put(features.query_shards, make.encoded_query(query_id) | {"text_hash": value})


def match(collection):
    found = collection.features().match_queries(collection.queries())
    return found.rows["query_id"].to_pylist(), found.missing, found.stale


@pytest.fixture
def world(tmp_path):
    """Five videos, a query of each, a run and an index."""
    served.add_videos(tmp_path, [f"v{n}" for n in range(5)])
    served.add_queries(tmp_path, {f"q{n}": [f"v{n}"] for n in range(5)})
    student = served.add_run(tmp_path)
    served.add_index(tmp_path, IndexSettings(), 2)
    return tmp_path, student


def test_captions_are_joined_with_their_vectors_by_id_and_text(tmp_path):
    collection = open_collection(str(tmp_path))
    make.put(collection.query_shards, *(make.query(f"q{n}", f"text {n}") for n in range(4)))
    features = collection.features()
    declare_spec(features.store, make.SPEC)
    encode(features, "q0", "text 0")
    encode(features, "q1", "another text")
    encode(features, "q2", "text 2")
    encode(features, "q2", "an edit that was taken back")
    assert match(collection) == (["q0", "q2"], ["q3"], ["q1"])
    pinned = collection.pinned(collection.plan())
    edit(tmp_path, "q0")
    assert match(collection) == (["q2"], ["q3"], ["q0", "q1"])
    assert match(pinned) == (["q0", "q2"], ["q3"], ["q1"])


def test_nothing_is_encoded_of_a_set_that_is_not_there(tmp_path):
    collection = open_collection(str(tmp_path))
    make.put(collection.query_shards, make.query("q"))
    assert match(collection) == ([], ["q"], [])


def test_an_imported_set_mixes_in_the_version_of_its_files(tmp_path):
    released_layout.render(tmp_path / "source")
    root = str(tmp_path / "root")
    import_collection("released", str(tmp_path / "source"), root)
    collection = open_collection(root)
    ids = collection.queries()["query_id"].to_pylist()
    assert match(collection) == (ids, [], [])
    edit(root, *ids[:2])
    assert match(collection) == (ids[2:], [], ids[:2])


def test_a_set_that_an_earlier_version_imported_is_not_stale(tmp_path):
    released_layout.render(tmp_path / "source")
    root = str(tmp_path / "root")
    import_collection("released", str(tmp_path / "source"), root)
    collection = open_collection(root)
    (tmp_path / "root/features/default/query-versions.json").unlink()  # that version did not write it
    ids = collection.queries()["query_id"].to_pylist()
    assert match(collection) == (ids, [], [])
    shutil.copytree(tmp_path / "source", tmp_path / "copy")  # files with other times of change
    import_collection("released", str(tmp_path / "copy"), root)
    assert match(collection) == (ids, [], [])


def test_most_captions_stale_is_refused_and_half_is_not():
    rows = pa.table({"query_id": ["a", "b"]})
    EncodedQueries(rows, ["m"], ["x", "y"]).check("split 'val'")
    with pytest.raises(ValueError, match=r"3 of the 5 encoded captions of split 'val' .*'x', 'y', 'z'.* `prvr ingest`"):
        EncodedQueries(rows, ["m"], ["x", "y", "z"]).check("split 'val'")


def test_training_leaves_stale_captions_out_and_names_them(tmp_path):
    plant(str(tmp_path), splits={"train": 4, "val": 2})
    edit(tmp_path, "train-0#0")
    selection = TrainingData.of(str(tmp_path), "default").select("train", only_captioned=True)
    assert len(selection.queries) == 7
    assert "train-0#0" not in selection.relevant
    [(reason, named)] = selection.report()["left_out"].items()
    assert "text has changed" in reason
    assert named == "1: train-0#0"
    edit(tmp_path, *(f"train-{n}#{k}" for n in range(4) for k in range(2)))
    with pytest.raises(ValueError, match=r"8 of the 8 encoded captions of split 'train' .*run `prvr ingest`"):
        TrainingData.of(str(tmp_path), "default").select("train", only_captioned=True)


def test_a_score_job_counts_stale_captions_as_not_encoded(world):
    root, _ = world
    edit(root, "q1", "q3")
    rows, _, left_out = find_queries("test", IndexFolder(open_collection(str(root)), "i"), "job")
    assert rows["query_id"].to_pylist() == ["q0", "q2", "q4"]
    changed = {"count": 2, "such_as": ["q1", "q3"]}
    assert left_out == {"queries_without_features": 2, "queries_with_changed_text": changed}
    edit(root, "q0")
    with pytest.raises(ValueError, match=r"3 of the 5 encoded captions of split 'test' .*run `prvr ingest`"):
        find_queries("test", IndexFolder(open_collection(str(root)), "i"), "job")


def test_an_evaluation_and_a_report_refuse_stale_captions(world):
    root, student = world
    collection = open_collection(str(root))
    edit(root, "q1")
    with pytest.raises(ValueError, match=r"1 queries have no features .*'q1': run `prvr ingest`"):
        query_vectors(collection.features(), collection.queries().to_pylist(), student, "cpu")
    with pytest.raises(ValueError, match=r"'q1' has no features of its present text: run `prvr ingest`"):
        open_lookup(collection, "i").embed_stored(["q0", "q1"])
    assert len(open_lookup(collection, "i").embed_stored(["q0"])[0][1]) == 1


def test_the_hash_of_a_text_is_what_earlier_versions_wrote():
    assert schema.text_hash("a dog") == hashlib.sha256(b"a dog").hexdigest()[:16]
    assert schema.text_hash("a dog", "v1") == hashlib.sha256(b"v1 a dog").hexdigest()[:16]

"""Readers of an index see what its newest manifest names, whatever else lies in the folder."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.served import add_videos

from prvr_ray import schema
from prvr_ray.collection import existing_collection, maintenance
from prvr_ray.collection.maintenance import compact, gc, remove
from prvr_ray.collection.manifest import NOTHING, ManifestShard, put_manifest, read_manifest
from prvr_ray.index.index import IndexFolder
from prvr_ray.index.manifest import commit
from prvr_ray.storage import LocalStore, put_json


@pytest.fixture
def folder(tmp_path):
    add_videos(tmp_path, ["a", "b", "c", "d"])
    return IndexFolder(existing_collection(str(tmp_path)), "i")


def put(folder, name, *windows, added_at=1.0):
    """A shard of windows `a0`, the first one of video a, and so on."""
    rows = [{"video_id": window[0], "added_at": added_at, "window": int(window[1])} for window in windows]
    folder.shards.append(pa.Table.from_pylist(rows, schema.INDEX), f"shard-{name}.parquet")


def seen(folder):
    """The windows that readers see, by shard."""
    shards, missing = folder.plan()
    assert not missing
    found = {}
    for shard in shards:
        rows = folder.store.open(shard["name"])
        table = pq.read_table(rows, columns=["video_id", "window"]).to_pylist()
        kept = [row for place, row in enumerate(table) if place not in shard["skip"]]
        found[shard["name"][6:-8]] = "".join(f"{row['video_id']}{row['window']}" for row in kept)
    located = folder.windows().to_pylist()
    assert sorted(f"{row['video_id']}{row['window']}" for row in located) == sorted(
        text[place : place + 2] for text in found.values() for place in range(0, len(text), 2)
    )
    return found


def test_a_job_at_work_is_seen_when_it_commits(folder):
    put(folder, "1", "a0", "a1", "b0")
    commit(folder.shards, {})
    put(folder, "2", "c0")
    put(folder, "3", "b0", added_at=2.0)
    assert seen(folder) == {"1": "a0a1b0"}
    assert folder.shards.present() == [f"shard-{n}.parquet" for n in (1, 2, 3)]
    commit(folder.shards, {})
    assert seen(folder) == {"1": "a0a1", "2": "c0", "3": "b0"}


def test_an_index_without_a_manifest_is_read_shard_by_shard(folder):
    put(folder, "1", "a0", "b0")
    put(folder, "2", "b0", added_at=2.0)
    assert seen(folder) == {"1": "a0", "2": "b0"}


def test_the_loss_of_a_shard_is_noticed_by_the_notes_of_an_earlier_version(folder):
    put(folder, "1", "a0")
    put(folder, "2", "b0")
    put_json(folder.store, "written-1.json", {"shard-1.parquet": "a", "shard-2.parquet": "b"})
    folder.store.delete("shard-2.parquet")
    assert folder.plan()[1] == [f"{folder.store.uri}/shard-2.parquet is missing"]


def test_a_commit_that_changes_nothing_puts_nothing(folder):
    put(folder, "1", "a0", "b0")
    first = commit(folder.shards, {})
    assert commit(folder.shards, {}) == first == read_manifest(folder.store)
    assert first.num_videos == 2
    assert len(folder.store.list("manifest-")) == 1


def test_no_shard_is_opened_to_plan(folder, monkeypatch):
    put(folder, "1", "a0", "b0")
    commit(folder.shards, {})
    read = []
    monkeypatch.setattr(LocalStore, "open", lambda store, key: read.append(key))
    get = LocalStore.get
    monkeypatch.setattr(LocalStore, "get", lambda store, key: read.append(key) or get(store, key))
    folder.plan()
    assert read == ["manifest-00000000.json"]


def test_a_manifest_takes_at_most_100_bytes_a_shard(tmp_path):
    store = LocalStore(str(tmp_path))
    names = [f"shard-{10**19 + n}-{hashlib.sha256(str(n).encode()).hexdigest()[:16]}.parquet" for n in range(1000)]
    shards = {name: ManifestShard(683, 201_326_592) for name in names}
    assert read_manifest(store) is None
    put_manifest(store, NOTHING.next(shards, 683_000))
    assert len(store.get("manifest-00000000.json")) < 100 * len(names)
    assert read_manifest(store).shards == shards


@pytest.mark.parametrize("rows", [[], [0], [3, 4, 5], [0, 2, 3, 9], [1, 3, 5]])
def test_superseded_rows_come_back_from_their_ranges(rows):
    shard = ManifestShard.of_rows(10, 1, np.array(rows, np.int64))
    assert shard.superseded_rows().tolist() == rows
    assert len(shard.superseded) <= 2 * len(rows)


def test_of_two_jobs_that_end_at_once_both_are_seen(folder, monkeypatch):
    put(folder, "1", "a0")
    real = put_manifest

    def late(store, manifest):
        monkeypatch.setattr("prvr_ray.index.manifest.put_manifest", real)
        put(folder, "2", "b0")
        commit(folder.shards, {})
        return real(store, manifest)

    monkeypatch.setattr("prvr_ray.index.manifest.put_manifest", late)
    commit(folder.shards, {})
    assert seen(folder) == {"1": "a0", "2": "b0"}


def test_a_compaction_replaces_what_readers_see_alone(folder):
    put(folder, "1", "a0", "b0")
    put(folder, "2", "b0", "c0", added_at=2.0)
    commit(folder.shards, {})
    put(folder, "3", "d0")  # of a job at work
    root = folder.collection.store.uri
    remove(root, "c")
    assert compact(root)["compacted"]["index/i"] == {"shards_replaced": 2, "shards_put": 1, "rows_left_out": 2}
    (text,) = seen(folder).values()
    assert text == "a0b0"
    gc(root, retention_days=0)
    assert list(seen(folder).values()) == [text]
    commit(folder.shards, {})
    assert sorted(seen(folder).values()) == ["a0b0", "d0"]


@pytest.mark.parametrize("call", ["put_json", "replace_shards"])
def test_a_compaction_that_is_killed_leaves_readers_as_they_were(folder, monkeypatch, call):
    put(folder, "1", "a0", "b0")
    put(folder, "2", "c0")
    commit(folder.shards, {})
    before, root = seen(folder), folder.collection.store.uri

    def die(*_):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, call, die)
        with pytest.raises(InterruptedError):
            compact(root)
    gc(root, retention_days=0)
    assert seen(folder) == before
    commit(folder.shards, {})
    assert sorted("".join(seen(folder).values())) == sorted("a0b0c0")
    compact(root)
    gc(root, retention_days=0)
    assert list(seen(folder).values()) == ["a0b0c0"]


def test_a_job_that_ends_while_a_compaction_writes_loses_and_doubles_nothing(folder, monkeypatch):
    put(folder, "1", "a0", "b0")
    put(folder, "2", "c0")
    commit(folder.shards, {})
    real = maintenance.replace_shards

    def late(*arguments):
        put(folder, "3", "b0", added_at=2.0)
        commit(folder.shards, {})
        return real(*arguments)

    monkeypatch.setattr(maintenance, "replace_shards", late)
    compact(folder.collection.store.uri)
    assert sorted("".join(seen(folder).values())) == sorted("a0b0c0")
    commit(folder.shards, {})
    assert sorted("".join(seen(folder).values())) == sorted("a0b0c0")
    assert len([name for name in folder.shards.live() if name == "shard-3.parquet"]) == 1


def test_a_manifest_of_a_newer_version_is_refused(folder):
    key = "manifest-00000003.json"
    Path(folder.store.uri).mkdir(parents=True)
    folder.store.put(key, json.dumps({"format_version": 9, "videos": 0, "shards": {}}).encode())
    with pytest.raises(ValueError, match=rf"{key} has format_version 9, this program reads up to 1"):
        folder.plan()

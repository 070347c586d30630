"""Rows of a collection's tables with everything filled in, and collections full of clashes, for tests."""

import random
from typing import Any

import numpy as np
import pyarrow as pa

from prvr_ray import schema
from prvr_ray.collection import Collection, ShardFolder, declare_spec
from prvr_ray.schema import pack_times, pack_vectors

Row = dict[str, Any]
SPEC = {"shared": False, "teacher": {"dim": 2}, "student": {"dim": 3, "token_dim": 4}}


def video(video_id: str, added_at: float = 1.0, **changed: Any) -> Row:
    return {
        "video_id": video_id,
        "uri": f"/videos/{video_id}",
        "size": 10,
        "etag": f"etag-{added_at}",
        "split": "train",
        "duration_s": None,
        "added_at": added_at,
        "removed": False,
        "metadata": None,
        **changed,
    }


def query(query_id: str, text: str = "a text", video_ids: tuple[str, ...] = ("a",), **changed: Any) -> Row:
    return {
        "query_id": query_id,
        "text": text,
        "video_ids": list(video_ids),
        "split": "train",
        "moments": [],
        **changed,
    }


def segment(video_id: str, segment: int = 0, is_last: bool = True, added_at: float = 1.0, **changed: Any) -> Row:
    """A segment of two frames, whose vectors tell which one it is."""
    number = float(segment) + 10 * added_at
    return {
        "video_id": video_id,
        "etag": f"etag-{added_at}",
        "added_at": added_at,
        "segment": segment,
        "is_last": is_last,
        "num_frames": 2,
        "timestamps_s": pack_times(np.array([2.0 * segment, 2.0 * segment + 1])),
        "teacher": pack_vectors(np.full((2, 2), number)),
        "student": pack_vectors(np.full((2, 3), -number)),
        "warnings": [],
        **changed,
    }


def failure(video_id: str, segment: int = 0, added_at: float = 1.0, error_class: str = "decode") -> Row:
    return {
        "video_id": video_id,
        "etag": f"etag-{added_at}",
        "added_at": added_at,
        "segment": segment,
        "is_last": True,
        "num_frames": 0,
        "error_class": error_class,
        "error": "broken",
    }


def encoded_query(query_id: str, value: float = 1.0) -> Row:
    vectors = {"teacher": pack_vectors(np.full((1, 2), value)), "student": pack_vectors(np.full((3, 4), value))}
    return {"query_id": query_id, "text_hash": f"hash-{value}", "num_tokens": 3, **vectors}


def window(video_id: str, window: int = 0, added_at: float = 1.0) -> Row:
    vectors = pack_vectors(np.full((2, 3), window + 10 * added_at))
    edges = pack_times(np.arange(3.0))
    return {
        "video_id": video_id,
        "etag": f"etag-{added_at}",
        "added_at": added_at,
        "window": window,
        "num_frames": 2,
        "edges_s": edges,
        "inheritance": vectors,
        "exploration": vectors,
    }


def put(folder: ShardFolder, *rows: Row, name: str | None = None) -> str:
    return folder.append(pa.Table.from_pylist(list(rows), folder.schema), name)


def index_folder(collection: Collection, name: str = "main") -> ShardFolder:
    return ShardFolder(collection.store.child(f"index/{name}"), schema.INDEX)


def put_clashes(collection: Collection, seed: int, num_shards: int = 6) -> list[tuple[str, str, list[Row]]]:
    """Fill a collection with random rows of few videos and queries, so that most stand in several shards.

    Returns:
        What was put: table, shard name, rows, in no particular order.
    """
    chance = random.Random(seed)
    features = collection.features()
    declare_spec(features.store, SPEC)
    folders = {
        "videos": (collection.video_shards, _random_video),
        "queries": (collection.query_shards, _random_query),
        "segments": (features.video_shards, _random_segment),
        "encoded": (
            features.query_shards,
            lambda chance: encoded_query(f"q{chance.randrange(6)}", chance.randrange(9)),
        ),
        "windows": (index_folder(collection), _random_window),
    }
    done = []
    for table, (folder, make) in folders.items():
        for number in chance.sample(range(100), num_shards):
            rows = [make(chance) for _ in range(chance.randrange(1, 8))]
            name = put(folder, *rows, name=f"shard-{number:020d}-{chance.randrange(16**8):08x}.parquet")
            done.append((table, name, rows))
    return done


def _random_video(chance: random.Random) -> Row:
    made = video(f"v{chance.randrange(6)}", float(chance.randrange(4)), removed=chance.random() < 0.2)
    return made | {"split": chance.choice(["train", "val", "test"])}


def _random_query(chance: random.Random) -> Row:
    return query(f"q{chance.randrange(6)}", f"text {chance.randrange(100)}", split=chance.choice(["train", "val"]))


def _random_segment(chance: random.Random) -> Row:
    video_id, number, added_at = f"v{chance.randrange(6)}", chance.randrange(3), float(chance.randrange(3))
    if chance.random() < 0.3:
        return failure(video_id, number, added_at, chance.choice(["decode", "timeout"]))
    return segment(video_id, number, chance.random() < 0.5, added_at)


def _random_window(chance: random.Random) -> Row:
    return window(f"v{chance.randrange(6)}", chance.randrange(3), float(chance.randrange(3)))

"""The node-local cache that training reads: flat float16 files and where each item starts, memory-mapped.

Owns the bytes: written once by one process of a node, renamed into place, read by all. It does not know what the rows
mean, where they come from, or how they are sampled, and it may be larger than memory.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

_INDEX, _IDS = "index.npz", "ids.json"
ARRAYS = {"frames": "videos", "teacher_frames": "videos", "tokens": "queries", "teacher_queries": "queries"}


class VideoRows(NamedTuple):
    """One video as the cache stores it: (num_frames, dim) arrays of the student's and of the teacher's frames."""

    video_id: str
    frames: np.ndarray
    teacher_frames: np.ndarray


class QueryRows(NamedTuple):
    """One query as the cache stores it: (num_tokens, dim) tokens, the teacher's (dim,) vector, its relevant videos."""

    query_id: str
    video_ids: list[str]
    tokens: np.ndarray
    teacher_query: np.ndarray


@dataclass(frozen=True)
class Ragged:
    """Items of different lengths in one flat array.

    values_nD: (rows of all items, dim) float16, memory-mapped. starts, lengths: int64, one an item.
    """

    values_nD: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def take(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of some items one after another, and how many each has."""
        lengths = self.lengths[items]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self.values_nD[np.repeat(self.starts[items], lengths) + within], lengths


@dataclass(frozen=True)
class FeatureCache:
    """One split's features. Videos and queries are numbered in the order of their ids.

    pair_video_P, pair_query_P: int64, every (video, relevant query) pair, sorted by video and then by query.
    """

    video_ids: list[str]
    query_ids: list[str]
    frames: Ragged
    teacher_frames: Ragged
    tokens: Ragged
    teacher_queries: Ragged
    pair_video_P: np.ndarray
    pair_query_P: np.ndarray

    def queries_of(self, videos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The queries of some videos one after another, and how many each has."""
        starts = np.searchsorted(self.pair_video_P, videos)
        counts = np.searchsorted(self.pair_video_P, videos, side="right") - starts
        pairs = Ragged(self.pair_query_P, np.asarray(starts), counts)
        return pairs.take(np.arange(len(videos)))

    @cached_property
    def has_several_relevant(self) -> bool:
        """Whether any query has more than one relevant video."""
        return len(np.unique(self.pair_query_P)) < len(self.pair_query_P)

    def is_relevant(self, queries_N: np.ndarray, videos_V: np.ndarray) -> np.ndarray:
        """(N, V) bool: whether each of some videos is relevant to each of some queries."""
        num_queries = len(self.query_ids)
        pair_P = self.pair_video_P * num_queries + self.pair_query_P
        return np.isin(videos_V * num_queries + queries_N[:, None], pair_P)

    def first_videos(self) -> list[str]:
        """The first relevant video of every query."""
        _, first_Q = np.unique(self.pair_query_P, return_index=True)
        return [self.video_ids[video] for video in self.pair_video_P[first_Q].tolist()]

    def captioned_videos(self) -> np.ndarray:
        """The videos that have a query."""
        return np.unique(self.pair_video_P)


def open_cache(folder: Path, fill: Callable[[Path], None]) -> FeatureCache:
    """Open the cache at `folder`. If there is none, one process calls `fill` on a folder beside it and renames that
    into place while the others of this node wait; what a killed process left is thrown away."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_whole(folder):
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            for left in (unfinished, folder):
                shutil.rmtree(left, ignore_errors=True)
            unfinished.mkdir()
            fill(unfinished)
            os.replace(unfinished, folder)
    return read_cache(folder)


def _is_whole(folder: Path) -> bool:
    """Whether every file is there: what cleans /tmp takes old files away and leaves their folder."""
    return all((folder / name).exists() for name in (*(f"{array}.f16" for array in ARRAYS), _INDEX, _IDS))


def write_cache(folder: Path, videos: Iterable[VideoRows], queries: Iterable[QueryRows]) -> None:
    """Stream rows into the files of an empty folder.

    Args:
        videos: a video without frames is an error.
        queries: a query without tokens or relevant videos is an error; all its videos must be among `videos`.

    Raises:
        ValueError: an item that is empty, not finite in float16, of another dimension than the first, or unknown.
    """
    writers = {name: _Writer(folder / f"{name}.f16", name) for name in ARRAYS}
    video_ids, query_ids, relevant_of = [], [], []
    for video_id, frames, teacher_frames in videos:
        writers["frames"].append(video_id, frames)
        writers["teacher_frames"].append(video_id, teacher_frames)
        video_ids.append(video_id)
    for query_id, relevant, tokens, teacher_query in queries:
        writers["tokens"].append(query_id, tokens)
        writers["teacher_queries"].append(query_id, teacher_query[None])
        query_ids.append(query_id)
        relevant_of.append(relevant)
    if not video_ids or not query_ids:
        raise ValueError(f"nothing to cache: {len(video_ids)} videos and {len(query_ids)} queries")
    by_id = {"videos": _order(video_ids), "queries": _order(query_ids)}
    numbers = {video_ids[item]: number for number, item in enumerate(by_id["videos"])}
    pairs = [
        (_number(video_id, query_ids[item], numbers), query)
        for query, item in enumerate(by_id["queries"])
        for video_id in relevant_of[item]
    ]
    index = {name: writer.finish(by_id[ARRAYS[name]]) for name, writer in writers.items()}
    np.savez(folder / _INDEX, **(index | {"pairs": np.array(sorted(pairs), dtype=np.int64)}))  # type: ignore[arg-type]
    ids = {"videos": sorted(video_ids), "queries": sorted(query_ids)}
    (folder / _IDS).write_text(json.dumps(ids))


def read_cache(folder: Path) -> FeatureCache:
    """Map a cache that `write_cache` wrote; nothing but the small index is read."""
    ids = json.loads((folder / _IDS).read_text())
    with np.load(folder / _INDEX) as index:
        pairs_P2 = index["pairs"]
        arrays = {name: _map(folder / f"{name}.f16", *index[name]) for name in ARRAYS}
    return FeatureCache(
        ids["videos"],
        ids["queries"],
        pair_video_P=np.ascontiguousarray(pairs_P2[:, 0]),
        pair_query_P=np.ascontiguousarray(pairs_P2[:, 1]),
        **arrays,
    )


class _Writer:
    """Appends items to one flat file."""

    def __init__(self, path: Path, what: str) -> None:
        self.file = open(path, "wb")  # noqa: SIM115, closed by finish()
        self.what = what
        self.dim: int | None = None
        self.lengths: list[int] = []

    def append(self, item_id: str, x_nD: np.ndarray) -> None:
        self.dim = self.dim or x_nD.shape[1]
        if x_nD.shape[1] != self.dim:
            raise ValueError(f"{self.what} of {item_id!r} have {x_nD.shape[1]} features, others have {self.dim}")
        if not len(x_nD):
            raise ValueError(f"{item_id!r} has no {self.what}")
        half_nD = x_nD.astype(np.float16)
        if not np.isfinite(half_nD).all():
            raise ValueError(f"{self.what} of {item_id!r} are not finite in float16; encode or import it again")
        self.file.write(half_nD.tobytes())
        self.lengths.append(len(half_nD))

    def finish(self, order: list[int]) -> np.ndarray:
        """Close the file; (3, items): starts and lengths in the order of ids, and the dimension."""
        self.file.close()
        lengths = np.array(self.lengths, dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        return np.stack([starts[order], lengths[order], np.full(len(order), self.dim or 0)])


def _order(ids: list[str]) -> list[int]:
    if len(set(ids)) != len(ids):
        raise ValueError(f"ids that occur twice: {sorted({i for i in ids if ids.count(i) > 1})[:5]}")
    return sorted(range(len(ids)), key=ids.__getitem__)


def _number(video_id: str, query_id: str, numbers: dict[str, int]) -> int:
    if video_id not in numbers:
        raise ValueError(f"query {query_id!r} names {video_id!r}, which is not among the {len(numbers)} videos")
    return numbers[video_id]


def _map(path: Path, starts: np.ndarray, lengths: np.ndarray, dims: np.ndarray) -> Ragged:
    shape = (int(lengths.sum()), int(dims[0]))
    return Ragged(np.memmap(path, dtype=np.float16, mode="r", shape=shape), starts, lengths)

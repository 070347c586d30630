"""A score job: its files in storage, and the work of its workers.

scores/<job>/  spec.json                       the request: index, queries, top_k, moments, weights
               plan.json                       the index's shards and how they and the queries are cut
               queries/00000.safetensors       query file: ids and vectors of some queries, in the order of their ids
               partials/00000-00000.safetensors   (a partial that lacks a shard ends in .incomplete.safetensors)
               part-00000-000.parquet          answers, by query_id and rank; the partials go once all parts are there
               finished.json                   the summary

    shard        a file of the index: windows with their frames
    unit         consecutive shards; a worker scores one at a time
    block        consecutive query files: queries whose vectors stay in memory while shards are read
    partial      the best answers of one unit to one block
    part         a file of the result: answers to some queries of a block, merged from all of its partials
    query file   vectors of QUERIES_PER_FILE queries

Every object is put whole under a name that follows from the plan, and never changes, with two exceptions in resumed
jobs. Partials and parts that name a video removed since then are made again. So are those that lack a shard, because
the shard may have been restored.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
import torch

from prvr_ray import schema
from prvr_ray.collection import existing_collection
from prvr_ray.index.index import IndexFolder, LoadedShard
from prvr_ray.retrieval.blocks import Names
from prvr_ray.retrieval.buffers import free_spare_memory
from prvr_ray.retrieval.moments import find_moments
from prvr_ray.retrieval.scoring import Search
from prvr_ray.retrieval.topk import Answers, merge_into
from prvr_ray.scores.partial import (
    Partial,
    load_partial,
    pack_names,
    partial_values,
    save_partial,
    slice_queries,
    unpack_names,
)
from prvr_ray.storage import ShardError, Store, get_json, read_table, table_to_bytes
from prvr_ray.student.batching import prefetch

ADVICE = "Restore it, or delete what is damaged and index again, or go on without by --allow-missing"
QUERIES_PER_FILE = 4096
_ANSWERS_PER_PART = 2_000_000  # some 150 MB
_PAIRS_AT_ONCE = 4096  # curves in memory: 2 MB a branch at 128 frames
_PARALLEL_READS = 4  # of partials, each some MB
_TIMES = ("peak_s", "start_s", "end_s")
_COMPLETE, _INCOMPLETE = ".safetensors", ".incomplete.safetensors"
_ABSENT = "absent.json"  # of earlier versions: the shards that no partial has

Json = dict[str, Any]
FindTimes = Callable[[torch.Tensor, torch.Tensor], np.ndarray]


@dataclass(frozen=True)
class QueryVectors:
    """A block. ids: of Q queries. branches: weight and (Q, D) float32 unit rows of each branch."""

    ids: list[str]
    branches: list[tuple[float, torch.Tensor]]


@dataclass(frozen=True)
class ScoreJob:
    """A planned job. A small value that travels to workers.

    Attributes:
        root: the collection. name: of the job.
        spec, plan: the contents of spec.json and plan.json.
        mode: of the products; it changes no answer.
        allow_missing: leave out shards that are missing or damaged.
        removed: ids of the videos that were removed after the plan was made.
    """

    root: str
    name: str
    spec: Json
    plan: Json
    mode: str
    allow_missing: bool = False
    removed: tuple[str, ...] = ()

    @cached_property
    def index(self) -> IndexFolder:
        return IndexFolder(existing_collection(self.root), self.spec["index"])

    @cached_property
    def store(self) -> Store:
        return self.index.collection.store.child(f"scores/{self.name}")

    @property
    def branches(self) -> list[str]:
        return [branch for branch, _ in self.spec["weights"]]

    @property
    def top_k(self) -> int:
        """Videos per query: the number requested, or the number in the index if that is smaller."""
        top_k: int = self.plan["top_k"] if "top_k" in self.plan else self.spec["top_k"]  # not in earlier plans
        return top_k

    @property
    def num_moments(self) -> int:
        return min(self.spec["num_moments"], self.top_k)

    @property
    def num_blocks(self) -> int:
        return -(-self.plan["num_queries"] // self.plan["query_block"])

    def partial_key(self, block: int, unit: int, suffix: str = _COMPLETE) -> str:
        return f"partials/{block:05d}-{unit:05d}{suffix}"

    def part_keys(self, block: int) -> list[str]:
        """Keys of a block's parts, in order."""
        return [f"part-{block:05d}-{number:03d}.parquet" for number in range(len(self._part_starts(block)))]

    def pending_units(self) -> list[tuple[int, int]]:
        """(block, unit) of all partials that are still to be made, by block."""
        existing = {item.key for item in self.store.list("partials/")}
        return [
            (block, unit)
            for block in self.pending_blocks()
            for unit in range(len(self.plan["units"]))
            if self.partial_key(block, unit) not in existing
        ]

    def pending_blocks(self) -> list[int]:
        """Blocks of which a part is still to be made."""
        existing = {item.key for item in self.store.list("part-")}
        return [block for block in range(self.num_blocks) if not existing.issuperset(self.part_keys(block))]

    def finished(self) -> Json | None:
        """Return the summary of a finished job, or None while work is left. The index's shards may be gone by then."""
        if self.pending_blocks() or not self.store.exists("finished.json"):
            return None
        return get_json(self.store, "finished.json")

    def drop_removed(self) -> None:
        """Delete the partials and parts that name a removed video, since another video must take its rank."""
        if not self.removed:
            return
        keys = [item.key for prefix in ("part-", "partials/") for item in self.store.list(prefix)]
        with ThreadPoolExecutor(_PARALLEL_READS) as readers:
            for key, names in zip(keys, readers.map(self._names, keys), strict=True):
                if names.intersection(self.removed):
                    self.store.delete(key)

    def drop_incomplete(self) -> None:
        """Delete the partials that lack a shard, and before them the parts of their blocks."""
        keys = [*self._incomplete_keys(), *self._keys_without_absent()]
        blocks = {key.removeprefix("partials/").partition("-")[0] for key in keys}
        for item in self.store.list("part-"):
            if item.key.split("-")[1] in blocks:
                self.store.delete(item.key)
        for key in keys:
            self.store.delete(key)
        self.store.delete(_ABSENT)

    def missing_shards(self) -> list[str]:
        """Why shards were left out: one line for each."""
        found = [unpack_names(load_partial(self.store.get(key))["missing"]) for key in self._incomplete_keys()]
        return list(dict.fromkeys(line for lines in found for line in lines))

    def read_queries(self, block: int, device: torch.device | str = "cpu") -> QueryVectors:
        """Read the vectors of a block."""
        files = [safetensors.numpy.load(self.store.get(key)) for key in self._query_keys(block)]
        ids = [query_id for file in files for query_id in unpack_names(file["ids"])]
        branches = []
        for branch, weight in self.spec["weights"]:
            rows_QD = torch.from_numpy(np.concatenate([file[branch] for file in files]))
            branches.append((weight, rows_QD.to(device)))
        return QueryVectors(ids, branches)

    def put_partial(self, block: int, unit: int, queries: QueryVectors) -> None:
        """Score a unit for a block.

        Raises:
            ShardError: a shard is missing or damaged, and that is not allowed.
        """
        data, missing = self.score(unit, queries)
        self.store.put(self.partial_key(block, unit, _INCOMPLETE if missing else _COMPLETE), data)

    def score(self, unit: int, queries: QueryVectors) -> tuple[bytes, list[str]]:
        """Compute a partial; return its bytes, and one reason per shard that was left out."""
        running = Search(queries.branches, self.top_k, self.mode)
        times = _RunningTimes(len(queries.ids), self.num_moments)
        numbers, missing = list[np.ndarray](), list[str]()
        for shard in prefetch(self._load, self._shards(unit), depth=1):  # one is read while one is multiplied
            if isinstance(shard, str):
                missing.append(shard)
                continue
            first_window = running.num_windows
            running.add([shard.block])
            times.update(running.best.windows_QK, first_window, self._moments_of(queries, shard, first_window))
            numbers.append(shard.numbers)
        values = partial_values(running.best, running.names, np.concatenate([*numbers, [-1]])) | {
            "times": times.times_QM3
        }
        if missing:
            values["missing"] = pack_names(missing)
        del running  # its ordinals: saving makes a copy of the values
        return save_partial(values), missing

    def merge(self, block: int) -> Iterator[tuple[str, pa.Buffer]]:
        """Merge the partials of a block: keys and bytes of its parts."""
        free_spare_memory()
        ids, names = self.read_queries(block).ids, Names()
        best = Answers.none(len(ids), self.top_k, len(self.branches), "cpu")
        timed = Answers.none(len(ids), self.num_moments, len(_TIMES), "cpu", torch.float64)
        existing = {item.key for item in self.store.list("partials/")}
        for unit in range(len(self.plan["units"])):
            key = self.partial_key(block, unit)
            key = key if key in existing else self.partial_key(block, unit, _INCOMPLETE)
            partial = Partial(load_partial(self.store.get(key)), names)
            for rows in slice_queries(len(ids), self.top_k):
                merge_into(best[rows], partial.answers(rows), names.ids, repeats=True)
            # Merge the first answers once more, with their times. The overall first M are among the first M of units.
            if self.num_moments:
                merge_into(timed, partial.timed_answers(self.num_moments), names.ids, repeats=True)
            del partial  # before the next is read
        starts = self._part_starts(block)
        for key, start, stop in zip(self.part_keys(block), starts, [*starts[1:], len(ids)], strict=True):
            times_QM3 = timed.extras_QKE[start:stop].numpy()
            table = _answer_table(best[start:stop], times_QM3, ids[start:stop], names.ids, self.branches)
            yield key, table_to_bytes(table)

    def _moments_of(self, queries: QueryVectors, shard: LoadedShard, first_window: int) -> FindTimes:
        def find(query_P: torch.Tensor, window_P: torch.Tensor) -> np.ndarray:
            pairs = (query_P, window_P - first_window)
            found = find_moments(queries.branches, shard.block, shard.edges_s, *pairs, self.spec["moment_threshold"])
            return np.stack([found.peak_s, found.start_s, found.end_s], axis=1)

        return find

    def _keys_without_absent(self) -> list[str]:
        """Partials that an earlier version made without some shards: it noted those for the whole job."""
        absent = set(get_json(self.store, _ABSENT)) if self.store.exists(_ABSENT) else set()
        units = [
            unit for unit in range(len(self.plan["units"])) if any(s["name"] in absent for s in self._shards(unit))
        ]
        return [self.partial_key(block, unit) for block in range(self.num_blocks) for unit in units]

    def _incomplete_keys(self) -> list[str]:
        return [item.key for item in self.store.list("partials/") if item.key.endswith(_INCOMPLETE)]

    def _shards(self, unit: int) -> list[Json]:
        start, stop = self.plan["units"][unit]
        return self.plan["shards"][start:stop]

    def _load(self, shard: Json) -> LoadedShard | str:
        """A shard, or why it is left out."""
        removed = [*self.plan.get("removed", ()), *self.removed]
        try:
            return self.index.load(shard, self.branches, self.spec["dim"], removed)
        except ShardError as error:
            if self.allow_missing:
                return str(error)
            raise ShardError(f"{error}. {ADVICE}") from None

    def _names(self, key: str) -> set[str]:
        """The videos of a partial or a part."""
        if key.endswith(".parquet"):
            return set(read_table(self.store, key, ["video_id"])["video_id"].unique().to_pylist())
        return set(unpack_names(load_partial(self.store.get(key))["names"]))

    def _query_keys(self, block: int) -> list[str]:
        files = range(-(-self.plan["num_queries"] // QUERIES_PER_FILE))
        per_block = self.plan["query_block"] // QUERIES_PER_FILE
        return [query_key(file) for file in files[block * per_block : (block + 1) * per_block]]

    def _part_starts(self, block: int) -> list[int]:
        size, total = self.plan["query_block"], self.plan["num_queries"]
        num_queries = min(size, total - block * size)
        return list(range(0, num_queries, max(1, _ANSWERS_PER_PART // self.top_k)))


def query_key(file: int) -> str:
    """Key of the vectors of queries [file * QUERIES_PER_FILE, (file + 1) * QUERIES_PER_FILE)."""
    return f"queries/{file:05d}.safetensors"


class _RunningTimes:
    """Times of the first answers of a search in progress.

    times_QM3: float64, NaN where nothing is known, aligned with the search's best answers.
    """

    def __init__(self, num_queries: int, num_moments: int):
        self.times_QM3 = np.full((num_queries, num_moments, len(_TIMES)), np.nan)
        self._windows_QM = np.full((num_queries, num_moments), -1)

    def update(self, windows_QK: torch.Tensor, first_new: int, find: FindTimes) -> None:
        """Update the times to the best answers: keep those of remaining answers, and find those of new ones.

        Args:
            windows_QK: the best windows now; ordinals from first_new on are new.
            find: times, (P, 3), of pairs of a query and a window.
        """
        windows = windows_QK[:, : self._windows_QM.shape[1]]
        windows_QM, before_QM = windows.cpu().numpy().copy(), self._windows_QM  # the search overwrites them
        times_QM3 = np.full_like(self.times_QM3, np.nan)
        # A window answers a query once: with the query it makes a key that finds its earlier place.
        stride = max(windows_QM.max(initial=0), before_QM.max(initial=0)) + 2
        query_Q1 = np.arange(len(windows_QM))[:, None] * stride + 1
        keys, earlier = (query_Q1 + windows_QM).ravel(), (query_Q1 + before_QM).ravel()
        order = earlier.argsort()
        place = order[np.searchsorted(earlier, keys, sorter=order).clip(max=max(0, len(order) - 1))]
        is_kept = (earlier[place] == keys) & (windows_QM.ravel() >= 0)
        times_QM3.reshape(-1, 3)[is_kept] = self.times_QM3.reshape(-1, 3)[place[is_kept]]
        query_P, place_P = (windows >= first_new).nonzero(as_tuple=True)
        for mine in torch.arange(len(query_P), device=query_P.device).split(_PAIRS_AT_ONCE):
            where = query_P[mine], place_P[mine]
            times_QM3[tuple(item.cpu().numpy() for item in where)] = find(where[0], windows[where])
        self.times_QM3, self._windows_QM = times_QM3, windows_QM


def _answer_table(
    best: Answers, times_QM3: np.ndarray, ids: list[str], names: list[str], branches: list[str]
) -> pa.Table:
    """Answers as rows of schema.SCORES, by query and rank."""
    query_N, place_N = (best.videos_QK >= 0).nonzero(as_tuple=True)
    branch_scores_NB = best.extras_QKE[query_N, place_N].numpy()
    times_N3 = np.full((len(query_N), len(_TIMES)), np.nan)
    is_timed_N = (place_N < times_QM3.shape[1]).numpy()
    times_N3[is_timed_N] = times_QM3[query_N.numpy()[is_timed_N], place_N.numpy()[is_timed_N]]
    columns: dict[str, Any] = {
        "query_id": pa.array(ids, pa.string()).take(pa.array(query_N.numpy())),
        "rank": place_N.numpy() + 1,
        "video_id": pa.array(names, pa.string()).take(pa.array(best.videos_QK[query_N, place_N].numpy())),
        "score": best.scores_QK[query_N, place_N].numpy(),
    }
    for column, branch in enumerate(branches):
        columns[f"{branch}_score"] = branch_scores_NB[:, column]
    for column, name in enumerate(_TIMES):
        columns[name] = pa.array(times_N3[:, column], from_pandas=True)  # NaN: no moment was asked for, or no times
    others = {name: pa.nulls(len(query_N)) for name in schema.SCORES.names if name not in columns}
    table = pa.table(columns | others)
    return table.select(schema.SCORES.names).cast(schema.SCORES)

"""A score job as it stands in storage, and what its workers do with it. No Ray here.

scores/<job>/  spec.json                       what is asked: index, questions, top_k, moments, weights
               plan.json                       the index's shards and how they and the questions are cut
               queries/00000.safetensors       ids and vectors of some questions, in the order of their ids
               partials/00000-00000.safetensors   answers of one block of questions from one unit of shards
               part-00000-000.parquet          answers, by query_id and rank; the partials go once all of them stand
               absent.json                     planned shards that were gone and were left out on request
               finished.json                   the summary

Every object is put whole under a name that follows from the plan, and never changes; only, where a video has been
removed since, or an absent shard has come back or another one gone, a resumed job makes the partials and parts that
this concerns again.
"""

import json
from collections.abc import Iterator
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
from prvr_ray.retrieval.blocks import Names
from prvr_ray.retrieval.moments import branch_curves, fuse_curves, locate
from prvr_ray.retrieval.scoring import Search
from prvr_ray.retrieval.topk import Answers, merge_top_k, side_by_side
from prvr_ray.stages.index_folder import IndexFolder, LoadedShard
from prvr_ray.storage import Store, get_json, put_json, read_table, table_to_bytes
from prvr_ray.student.batching import prefetch

QUERIES_PER_FILE = 4096
_ANSWERS_PER_PART = 2_000_000  # some 150 MB
_QUERIES_AT_ONCE = 4096  # of which answers are merged; moments that are found at a time
_PARALLEL_READS = 4  # of partials, each some MB
_TIMES = ("peak_s", "start_s", "end_s")
_ABSENT = "absent.json"

Json = dict[str, Any]


@dataclass(frozen=True)
class Questions:
    """ids, and per branch weight and (Q, D) float32 unit rows."""

    ids: list[str]
    queries: list[tuple[float, torch.Tensor]]


@dataclass(frozen=True)
class ScoreJob:
    """A planned job. A small value that travels to workers.

    Attributes:
        root: the collection. name: of the job.
        spec, plan: as they stand in storage.
        mode: of the products; it changes no answer.
        absent: names of planned shards that are to be left out, for they are gone.
        removed: ids of the videos that were removed after the plan was made.
    """

    root: str
    name: str
    spec: Json
    plan: Json
    mode: str
    absent: tuple[str, ...] = ()
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
    def num_blocks(self) -> int:
        return -(-self.plan["num_queries"] // self.plan["query_block"])

    def unit_key(self, block: int, unit: int) -> str:
        return f"partials/{block:05d}-{unit:05d}.safetensors"

    def part_keys(self, block: int) -> list[str]:
        """Keys of a block's parts, in order."""
        return [f"part-{block:05d}-{number:03d}.parquet" for number in range(len(self._part_starts(block)))]

    def wanted_units(self) -> list[tuple[int, int]]:
        """(block, unit) of all that is left to score, by block."""
        standing = {item.key for item in self.store.list()}
        return [
            (block, unit)
            for block in self.wanted_blocks()
            for unit in range(len(self.plan["units"]))
            if self.unit_key(block, unit) not in standing
        ]

    def wanted_blocks(self) -> list[int]:
        """Blocks that have not all their parts."""
        standing = {item.key for item in self.store.list("part-")}
        return [block for block in range(self.num_blocks) if not standing.issuperset(self.part_keys(block))]

    def finished(self) -> Json | None:
        """The summary of a job that has ended; None while there is something to do. Its shards may be gone since."""
        if self.wanted_blocks() or not self.store.exists("finished.json"):
            return None
        return get_json(self.store, "finished.json")

    def drop_removed(self) -> None:
        """Delete the partials and parts that name a removed video: without it another one takes its place."""
        if not self.removed:
            return
        keys = [item.key for prefix in ("part-", "partials/") for item in self.store.list(prefix)]
        with ThreadPoolExecutor(_PARALLEL_READS) as readers:
            for key, names in zip(keys, readers.map(self._names, keys), strict=True):
                if names.intersection(self.removed):
                    self.store.delete(key)

    def note_absent(self) -> None:
        """Delete what was made with other shards absent than now: those that are restored must be scored after all."""
        noted = set(get_json(self.store, _ABSENT) if self.store.exists(_ABSENT) else ())
        changed = noted.symmetric_difference(self.absent)
        if not changed:
            return
        units = [unit for unit in range(len(self.plan["units"])) if not changed.isdisjoint(self._shard_names(unit))]
        keys = {self.unit_key(block, unit) for block in range(self.num_blocks) for unit in units}
        for item in [*self.store.list("part-"), *self.store.list("partials/")]:
            if item.key.startswith("part-") or item.key in keys:
                self.store.delete(item.key)
        put_json(self.store, _ABSENT, sorted(self.absent))

    def questions(self, block: int, device: torch.device | str = "cpu") -> Questions:
        """Read the vectors of a block of questions."""
        files = [safetensors.numpy.load(self.store.get(key)) for key in self._query_keys(block)]
        ids = [query_id for file in files for query_id in unpack_names(file["ids"])]
        queries = []
        for branch, weight in self.spec["weights"]:
            rows_QD = torch.from_numpy(np.concatenate([file[branch] for file in files]))
            queries.append((weight, rows_QD.to(device)))
        return Questions(ids, queries)

    def score(self, unit: int, questions: Questions) -> bytes:
        """The answers of a unit of shards, as bytes of a partial."""
        num_branches, num_moments = len(questions.queries), self.spec["num_moments"]
        running = Search(questions.queries, self.spec["top_k"], self.mode, num_extras=len(_TIMES))
        numbers: list[np.ndarray] = []
        for shard in prefetch(self._load, self._shards(unit), depth=1):
            first_window = running.num_windows
            running.add([shard.block])
            self._find_moments(running, questions, shard, first_window)
            numbers.append(shard.numbers)
        best = running.best
        known, videos_QK = best.videos_QK.cpu().unique(return_inverse=True)
        number_of = np.concatenate([*numbers, [-1]]).astype(np.int32)  # the last for empty places, whose ordinal is -1
        extras_QKE = best.extras_QKE.cpu()
        return safetensors.numpy.save(
            {
                "scores": best.scores_QK.cpu().numpy(),
                "videos": videos_QK.numpy().astype(np.int32),
                "windows": number_of[best.windows_QK.cpu().numpy()],
                "branch_scores": extras_QKE[..., :num_branches].float().numpy(),
                "times": extras_QKE[:, :num_moments, num_branches:].contiguous().numpy(),
                "names": pack_names(["" if video < 0 else running.names[video] for video in known.tolist()]),
            }
        )

    def merge(self, block: int) -> Iterator[tuple[str, pa.Buffer]]:
        """Merge the partials of a block: keys and bytes of its parts."""
        k, num_branches = self.spec["top_k"], len(self.spec["weights"])
        ids, names = self.questions(block).ids, Names()
        best = Answers.none(len(ids), k, num_branches + len(_TIMES), "cpu")
        for unit in range(len(self.plan["units"])):
            partial = _answers(self.store.get(self.unit_key(block, unit)), names)
            for start in range(0, len(ids), _QUERIES_AT_ONCE):
                rows = slice(start, start + _QUERIES_AT_ONCE)
                both = side_by_side([best[rows], partial[rows]])
                best[rows] = merge_top_k(both, k, names.ids, repeats=True)
        best.extras_QKE[:, self.spec["num_moments"] :, num_branches:] = torch.nan  # first in its unit, but not of all
        starts = self._part_starts(block)
        for key, start, stop in zip(self.part_keys(block), starts, [*starts[1:], len(ids)], strict=True):
            table = _answer_table(best[start:stop], ids[start:stop], names.ids, self.branches)
            yield key, table_to_bytes(table)

    def _find_moments(self, running: Search, questions: Questions, shard: LoadedShard, first_window: int) -> None:
        """Fill in the times of the first answers that this shard has brought."""
        num_branches, best = len(questions.queries), running.best
        is_new_QK = best.windows_QK[:, : self.spec["num_moments"]] >= first_window
        query_P, place_P = is_new_QK.nonzero(as_tuple=True)
        for mine in torch.arange(len(query_P), device=query_P.device).split(_QUERIES_AT_ONCE):
            where = query_P[mine], place_P[mine]
            window_P = best.windows_QK[where] - first_window
            curves = branch_curves([rows_QD for _, rows_QD in questions.queries], shard.block, where[0], window_P)
            curve_PF = fuse_curves([weight for weight, _ in questions.queries], curves)
            edge_P = shard.first_edge[window_P.cpu().numpy()]
            found = locate(curve_PF, shard.edges_s, edge_P, self.spec["moment_threshold"])
            times_P3 = np.stack([found.peak_s, found.start_s, found.end_s], axis=1)
            best.extras_QKE[..., num_branches:][where] = torch.from_numpy(times_P3).to(query_P.device)

    def _shards(self, unit: int) -> list[Json]:
        start, stop = self.plan["units"][unit]
        return [shard for shard in self.plan["shards"][start:stop] if shard["name"] not in self.absent]

    def _shard_names(self, unit: int) -> list[str]:
        start, stop = self.plan["units"][unit]
        return [shard["name"] for shard in self.plan["shards"][start:stop]]

    def _load(self, shard: Json) -> LoadedShard:
        return self.index.load(shard, self.branches, self.spec["dim"], self.removed)

    def _names(self, key: str) -> set[str]:
        """The videos of a partial or a part."""
        if key.endswith(".parquet"):
            return set(read_table(self.store, key, ["video_id"])["video_id"].unique().to_pylist())
        return set(unpack_names(safetensors.numpy.load(self.store.get(key))["names"]))

    def _query_keys(self, block: int) -> list[str]:
        files = range(-(-self.plan["num_queries"] // QUERIES_PER_FILE))
        per_block = self.plan["query_block"] // QUERIES_PER_FILE
        return [query_key(file) for file in files[block * per_block : (block + 1) * per_block]]

    def _part_starts(self, block: int) -> list[int]:
        size, total = self.plan["query_block"], self.plan["num_queries"]
        num_queries = min(size, total - block * size)
        return list(range(0, num_queries, max(1, _ANSWERS_PER_PART // self.spec["top_k"])))


def query_key(file: int) -> str:
    """Key of the vectors of questions [file * QUERIES_PER_FILE, (file + 1) * QUERIES_PER_FILE)."""
    return f"queries/{file:05d}.safetensors"


def pack_names(names: list[str]) -> np.ndarray:
    """Strings as an array of bytes, for a safetensors object."""
    return np.frombuffer(json.dumps(names).encode(), np.uint8)


def unpack_names(data: np.ndarray) -> list[str]:
    """Read what `pack_names` wrote."""
    return json.loads(data.tobytes())


def _answers(data: bytes, names: Names) -> Answers:
    """A partial, its videos under the ordinals of `names`."""
    partial = safetensors.numpy.load(data)
    own_names = unpack_names(partial["names"])
    ordinals = names.ordinals([name for name in own_names if name])
    if own_names[:1] == [""]:  # empty places have the lowest ordinal
        ordinals = torch.cat([torch.tensor([-1]), ordinals])
    times_QK3 = np.full((*partial["scores"].shape, len(_TIMES)), np.nan)
    times_QK3[:, : partial["times"].shape[1]] = partial["times"]
    return Answers(
        torch.from_numpy(partial["scores"]),
        ordinals[torch.from_numpy(partial["videos"]).long()],
        torch.from_numpy(partial["windows"]).long(),
        torch.from_numpy(np.concatenate([partial["branch_scores"], times_QK3], axis=2)),
    )


def _answer_table(best: Answers, ids: list[str], names: list[str], branches: list[str]) -> pa.Table:
    """Answers as rows of schema.SCORES, by query and rank."""
    query_N, place_N = (best.videos_QK >= 0).nonzero(as_tuple=True)
    extras_NE = best.extras_QKE[query_N, place_N].numpy()
    columns: dict[str, Any] = {
        "query_id": pa.array(ids, pa.string()).take(pa.array(query_N.numpy())),
        "rank": place_N.numpy() + 1,
        "video_id": pa.array(names, pa.string()).take(pa.array(best.videos_QK[query_N, place_N].numpy())),
        "score": best.scores_QK[query_N, place_N].numpy(),
    }
    for column, branch in enumerate(branches):
        columns[f"{branch}_score"] = extras_NE[:, column].astype(np.float32)
    for column, name in enumerate(_TIMES, len(branches)):
        columns[name] = pa.array(extras_NE[:, column], from_pandas=True)  # NaN: no moment was asked for, or no times
    absent = {name: pa.nulls(len(query_N)) for name in schema.SCORES.names if name not in columns}
    table = pa.table(columns | absent)
    return table.select(schema.SCORES.names).cast(schema.SCORES)

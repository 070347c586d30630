"""How good a student is on a split after an epoch: recall of each branch, of both fused, and of the teacher.

Every worker encodes its part of the videos and queries, and scores all queries with its own videos. Ranks come from
counting: workers exchange the scores of the relevant videos and how many others reach them, never a score matrix. The
columns of this worker's videos are held, for each branch and the fused score 95 MB on one worker for TVR's 10,895
queries and 2,179 videos: to hold less, every video would have to be encoded twice.

Shapes: Q queries, V videos, P pairs of a query and a relevant video, R rows, D features; a small v: of this worker, a
small p: of a tile.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prvr_ray.config import StudentSettings
from prvr_ray.retrieval.blocks import spans
from prvr_ray.retrieval.metrics import ranks_from_counts, summarize
from prvr_ray.student.batching import BatchReader
from prvr_ray.student.cache import Ragged
from prvr_ray.student.exchange import Exchange
from prvr_ray.student.model import Student
from prvr_ray.student.scores import max_cosines

ITEMS_PER_PASS = 128
_TEACHER_ROWS_PER_PASS = ITEMS_PER_PASS * 128  # the teacher sees every frame of an hour, the student at most 128
_PAIRS_PER_TILE = 1024
Metrics = dict[str, float]


@dataclass(frozen=True)
class Validation:
    """A split, and this worker's part of the work on it."""

    reader: BatchReader
    settings: StudentSettings
    exchange: Exchange

    def teacher(self) -> Metrics:
        """Recall of the teacher alone, zero-shot, on all its frames."""
        cache = self.reader.cache
        queries_QD = self.reader.take(cache.teacher_queries, np.arange(len(cache.query_ids)))[0]
        groups = (part for group in self._groups(len(cache.video_ids)) for part in _short(group, cache.teacher_frames))
        blocks = (self.reader.take(cache.teacher_frames, videos) for videos in groups)
        return summarize(self._rank(torch.cat([max_cosines(queries_QD, *block) for block in blocks], 1)))

    def student(self, model: Student) -> dict[str, Metrics]:
        """Recall of each branch and of their weighted sum, `fused`."""
        return {name: summarize(ranks) for name, ranks in self.ranks(model).items()}

    @torch.no_grad()
    def ranks(self, model: Student) -> dict[str, list[np.ndarray]]:
        """Of each branch and of `fused`: per query, the sorted ranks of its relevant videos."""
        model.eval()
        queries, groups = self._encode_queries(model), self._groups(len(self.reader.cache.video_ids))
        num_mine = sum(map(len, groups))
        scores = {name: rows_QD.new_empty(len(rows_QD), num_mine) for name, rows_QD in queries.items()}
        fused_Qv = torch.empty_like(next(iter(scores.values())))
        weights = {"inheritance": self.settings.inheritance_weight, "exploration": self.settings.exploration_weight}
        begin = 0
        for videos in groups:
            columns = slice(begin, begin + len(videos))
            rows_RD, layout = self.reader.take(self.reader.cache.frames, videos)
            for name, frames_RD in model.encode_frame_rows(rows_RD, layout).items():
                scores[name][:, columns] = max_cosines(queries[name], frames_RD, layout)
            fused_Qv[:, columns] = sum(weights[name] * scores_Qv[:, columns] for name, scores_Qv in scores.items())
            begin = columns.stop
        model.train()
        return {name: self._rank(scores_Qv) for name, scores_Qv in [*scores.items(), ("fused", fused_Qv)]}

    def _encode_queries(self, model: Student) -> dict[str, Tensor]:
        """All queries' vectors of each branch, (Q, D)."""
        cache, groups = self.reader.cache, self._groups(len(self.reader.cache.query_ids))
        encoded = [model.encode_query_rows(*self.reader.take(cache.tokens, queries)) for queries in groups]
        owner_Q = self._owners(len(cache.query_ids))
        return {name: self.exchange.gather(torch.cat([part[name] for part in encoded]), owner_Q) for name in encoded[0]}

    def _groups(self, count: int) -> list[np.ndarray]:
        """This worker's items in small groups; at least one group, which may be empty."""
        mine = np.arange(self.exchange.rank, count, self.exchange.world_size)
        return np.array_split(mine, max(1, -(-len(mine) // ITEMS_PER_PASS)))

    def _owners(self, count: int) -> np.ndarray:
        return np.arange(count) % self.exchange.world_size

    def _rank(self, scores_Qv: Tensor) -> list[np.ndarray]:
        cache = self.reader.cache
        order_P = np.argsort(cache.pair_query_P, kind="stable")
        query_P, video_P = cache.pair_query_P[order_P], cache.pair_video_P[order_P]
        counts_P = self._num_above(scores_Qv, torch.from_numpy(query_P), torch.from_numpy(video_P)).cpu().numpy()
        borders = np.searchsorted(query_P, np.arange(1, len(cache.query_ids)))
        return [ranks_from_counts(counts) for counts in np.split(counts_P, borders)]

    def _num_above(self, scores_Qv: Tensor, query_P: Tensor, video_P: Tensor) -> Tensor:
        """How many irrelevant videos of all workers score at least as high as each relevant one: (P,) int64.

        The relevant videos are struck out of scores_Qv.

        Raises:
            ValueError: NaN scores, on every worker.
        """
        if self.exchange.sum(scores_Qv.isnan().sum()):
            raise ValueError("scores hold NaN")
        query_P, video_P = query_P.to(scores_Qv.device), video_P.to(scores_Qv.device)
        is_mine_P = video_P % self.exchange.world_size == self.exchange.rank
        mine = query_P[is_mine_P], video_P[is_mine_P] // self.exchange.world_size
        level_P = scores_Qv.new_zeros(len(query_P))
        level_P[is_mine_P] = scores_Qv[mine]
        level_P = self.exchange.sum(level_P)
        scores_Qv[mine] = -torch.inf
        tiles = zip(query_P.split(_PAIRS_PER_TILE), level_P.split(_PAIRS_PER_TILE), strict=True)
        counts = [(scores_Qv[query_p] >= level_p[:, None]).sum(1) for query_p, level_p in tiles]
        return self.exchange.sum(torch.cat(counts))


def _short(videos: np.ndarray, frames: Ragged) -> list[np.ndarray]:
    """Cut videos into groups of few frames, or one video each; at least one group, which may be empty."""
    offsets = np.concatenate([[0], np.cumsum(frames.lengths[videos])])
    return [videos[start:stop] for start, stop in spans(offsets, _TEACHER_ROWS_PER_PASS)] or [videos]

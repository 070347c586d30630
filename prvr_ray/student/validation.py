"""How good a student is on a split after an epoch: recall of each branch, of both fused, and of the teacher.

Every worker encodes its share of videos and queries; the score matrices are gathered. Two float32 (Q, V) matrices
are held by each worker: 95 MB each for TVR's 10,895 queries and 2,179 videos.

Shapes: Q queries, V videos, R rows, D features; a small q or v: of this worker.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prvr_ray.config import StudentSettings
from prvr_ray.retrieval.metrics import ranks, summarize
from prvr_ray.student.batching import BatchReader
from prvr_ray.student.exchange import Exchange
from prvr_ray.student.model import Student
from prvr_ray.student.scores import max_cosines

ITEMS_PER_PASS = 128
Metrics = dict[str, float]


@dataclass(frozen=True)
class Validation:
    """A split and this worker's share of the work on it."""

    reader: BatchReader
    settings: StudentSettings
    exchange: Exchange

    def teacher(self) -> Metrics:
        """Recall of the teacher alone, zero-shot, on all its frames."""
        cache = self.reader.cache
        queries_QD = self.reader.take(cache.teacher_queries, np.arange(len(cache.query_ids)))[0]
        blocks = (self.reader.take(cache.teacher_frames, videos) for videos in self._shares(len(cache.video_ids)))
        return self._summarize(self._columns([max_cosines(queries_QD, *block) for block in blocks]))

    @torch.no_grad()
    def student(self, model: Student) -> dict[str, Metrics]:
        """Recall of each branch and of their weighted sum, `fused`."""
        model.eval()
        queries = self._encode_queries(model)
        blocks: dict[str, list[Tensor]] = {name: [] for name in queries}
        for videos in self._shares(len(self.reader.cache.video_ids)):
            rows_RD, layout = self.reader.take(self.reader.cache.frames, videos)
            for name, frames_RD in model.encode_frame_rows(rows_RD, layout).items():
                blocks[name].append(max_cosines(queries[name], frames_RD, layout))
        model.train()
        scores = {name: self._columns(parts) for name, parts in blocks.items()}
        weights = {"inheritance": self.settings.inheritance_weight, "exploration": self.settings.exploration_weight}
        fused_QV = torch.stack([weights[name] * scores_QV for name, scores_QV in scores.items()]).sum(0)
        return {name: self._summarize(scores_QV) for name, scores_QV in [*scores.items(), ("fused", fused_QV)]}

    def _encode_queries(self, model: Student) -> dict[str, Tensor]:
        """All queries' vectors of each branch, (Q, D)."""
        cache, shares = self.reader.cache, self._shares(len(self.reader.cache.query_ids))
        encoded = [model.encode_query_rows(*self.reader.take(cache.tokens, queries)) for queries in shares]
        owner_Q = self._owners(len(cache.query_ids))
        return {name: self.exchange.gather(torch.cat([part[name] for part in encoded]), owner_Q) for name in encoded[0]}

    def _shares(self, count: int) -> list[np.ndarray]:
        """This worker's items in small groups; at least one group, which may be empty."""
        mine = np.arange(self.exchange.rank, count, self.exchange.world_size)
        return np.array_split(mine, max(1, -(-len(mine) // ITEMS_PER_PASS)))

    def _owners(self, count: int) -> np.ndarray:
        return np.arange(count) % self.exchange.world_size

    def _columns(self, blocks: list[Tensor]) -> Tensor:
        local_Qv = torch.cat(blocks, 1)
        return self.exchange.gather_columns([local_Qv], self._owners(len(self.reader.cache.video_ids)))[0]

    def _summarize(self, scores_QV: Tensor) -> Metrics:
        return summarize(ranks(scores_QV.cpu().numpy(), self.reader.cache.relevant()))

"""Scores of a group of windows for a block of queries: quick products select, the routine scores.

The score of a window is sum_b w_b * max_f <q_b, v_bf>: each branch takes its own maximum over the window's frames.

s(q, v) comes out of a matrix product in float32 (mode `exact`) or bfloat16 (`fast`) and only selects:
`prvr_ray.retrieval.bounds` proves how far it and the routine's r (`prvr_ray.retrieval.routine`) may lie apart. What
that leaves open goes through the routine, in both modes.

Shape suffixes: Q queries, W windows, R rows (frames of all windows), D features, K chunks of at most CHUNK rows of one
window, C rows of a chunk, P pairs of a query and a window, E pairs of a query and a chunk, B branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prvr_ray.retrieval.blocks import BranchRows, WindowGroup, spans
from prvr_ray.retrieval.bounds import Norms, measure, relative_slack, slack
from prvr_ray.retrieval.memory import Memory, borrowed_memory
from prvr_ray.retrieval.multiplying import multiplier, on_threads
from prvr_ray.retrieval.routine import row_dots
from prvr_ray.retrieval.tiles import CHUNK, Run, chunk_edges, chunk_maxima, first_chunks, tiles

_TILE_PRODUCTS = {"cpu": 1 << 20, "cuda": 1 << 28}  # a tile of products stays in the cache, or fills the device
_MAX_TILE_ROWS = 1 << 14
# Rows of all branches that the routine may read at a time, on one thread and on all: at most 75 and 150 MB at 384
# features, half of that where two branches share them, for a thread's branches come one after the other.
_ROUTINE_ROWS, _ALL_ROUTINE_ROWS = 1 << 15, 1 << 16


@dataclass(frozen=True, eq=False)
class Pairs:
    """Scored pairs, by query: rows of the query block, rows of the window group, and their scores in float32."""

    query_P: torch.Tensor
    window_P: torch.Tensor
    score_P: torch.Tensor
    branch_scores_PB: torch.Tensor


@dataclass(frozen=True, eq=False)
class BranchQueries:
    """One branch of some queries: (Q, D) float32 rows, their norms, and the memory in which their products stand."""

    rows_QD: torch.Tensor
    norms: Norms
    memory: Memory

    def __getitem__(self, rows: slice) -> "BranchQueries":
        return BranchQueries(self.rows_QD[rows], self.norms[rows], self.memory)


def num_maxima(rows: BranchRows) -> int:
    """How many maxima are kept for each query: of chunks and of windows."""
    return int(first_chunks(rows.offsets)[-1]) + len(rows.offsets) - 1


class BranchProducts:
    """One branch: products of a group's frames and a query block, kept as maxima over chunks and over windows.

    Attributes:
        first_chunk: the first chunk of each window, and the number of all chunks, (W + 1,).
        window_max_WQ: float32.
        frame_norms: the largest of the group's frames; not finite where a frame is not.
        slack_WQ: the bound for each of them; one row may stand for all windows.
    """

    def __init__(self, rows: BranchRows, queries: BranchQueries, dtype: torch.dtype) -> None:
        queries_QD, memory = queries.rows_QD, queries.memory
        num_queries, dim = queries_QD.shape
        self.rows, self._queries_QD = rows, queries_QD
        self.first_chunk = first_chunks(rows.offsets)
        self._chunks = torch.from_numpy(self.first_chunk).to(queries_QD.device)
        self._chunk_rows = torch.from_numpy(chunk_edges(rows.offsets, self.first_chunk)).to(queries_QD.device)
        self._chunk_max_KQ = memory.tensor("chunks", (int(self.first_chunk[-1]), num_queries), dtype)
        self._kept_max_WQ = memory.tensor("windows", (len(rows.offsets) - 1, num_queries), dtype)
        self.frame_norms = self._multiply(queries_QD.to(dtype))
        self.window_max_WQ = memory.converted("windows in float32", self._kept_max_WQ, torch.float32)
        self.slack_WQ = slack(queries.norms, self.frame_norms, dim)[None]
        if relative := relative_slack(dtype):
            each_WQ = torch.abs(self.window_max_WQ, out=memory.tensor("slack", self.window_max_WQ.shape))
            self.slack_WQ = each_WQ.mul_(relative).add_(self.slack_WQ)

    def _multiply(self, queries_QD: torch.Tensor) -> Norms:
        """Fill the maxima, tile by tile; the largest norms of all frames."""
        tile_rows = min(_TILE_PRODUCTS[queries_QD.device.type] // max(1, len(queries_QD)), _MAX_TILE_ROWS)
        cut = tiles(self.rows.offsets, self.first_chunk, tile_rows)
        multiply = multiplier(queries_QD)
        waiting, largest = iter(cut), list[Norms]()

        def multiply_some() -> None:
            with borrowed_memory("tile", queries_QD.device) as memory:
                for runs in waiting:
                    rows_RD = self.rows.read(runs[0].windows.start, runs[-1].windows.stop, memory)
                    rounded_RD = memory.converted("rounded", rows_RD, queries_QD.dtype)
                    largest.append(measure(rows_RD, rounded_RD, memory).largest())
                    self._keep_maxima(multiply(rounded_RD, memory), runs)

        on_threads(multiply_some, len(cut), queries_QD.device)
        return Norms(torch.stack([n.norm for n in largest]), torch.stack([n.rounding for n in largest])).largest()

    def _keep_maxima(self, products_RQ: torch.Tensor, runs: list[Run]) -> None:
        """Maxima of a tile's windows, whose rows the products are."""
        first = runs[0].rows.start
        for run in runs:
            shape = (run.windows.stop - run.windows.start, -1, products_RQ.shape[1])
            products_WFQ = products_RQ[run.rows.start - first : run.rows.stop - first].view(shape)
            chunks_WKQ = self._chunk_max_KQ[run.chunks].view(shape)
            chunk_maxima(products_WFQ, chunks_WKQ)
            torch.amax(chunks_WKQ, 1, out=self._kept_max_WQ[run.windows])

    def score(
        self, start: int, stop: int, query_P: torch.Tensor, window_P: torch.Tensor, memory: Memory
    ) -> torch.Tensor:
        """The routine's maxima for pairs with the windows [start, stop): (P,) float32.

        They lie in chunks whose products are at most twice the slack below the window's largest.
        """
        chunk_PK, max_PK = self._chunks_of(query_P, window_P)
        slack_P = self.slack_WQ.expand_as(self.window_max_WQ)[window_P, query_P]
        level_P = self.window_max_WQ[window_P, query_P] - 2 * slack_P
        pair_E, place_E = (max_PK >= level_P[:, None]).nonzero(as_tuple=True)
        span = slice(int(self.first_chunk[start]), int(self.first_chunk[stop]))
        score_E = self._score_chunks(query_P[pair_E], chunk_PK[pair_E, place_E], span, memory)
        return level_P.scatter_reduce_(0, pair_E, score_E, "amax", include_self=False)

    def _chunks_of(self, query_P: torch.Tensor, window_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The chunks of each pair's window and their largest products, (P, K) both; -inf past the last chunk."""
        first_P, stop_P = self._chunks[window_P], self._chunks[window_P + 1]
        most = int((stop_P - first_P).max()) if len(query_P) else 1
        chunk_PK = first_P[:, None] + torch.arange(most, device=first_P.device)
        is_past_PK = chunk_PK >= stop_P[:, None]
        chunk_PK.masked_fill_(is_past_PK, 0)
        return chunk_PK, self._chunk_max_KQ[chunk_PK, query_P[:, None]].masked_fill_(is_past_PK, -torch.inf)

    def _score_chunks(self, query_E: torch.Tensor, chunk_E: torch.Tensor, span: slice, memory: Memory) -> torch.Tensor:
        """The routine's maximum for pairs of a query and one of a span of chunks: (E,) float32.

        Each wanted chunk is read once: first the first row of all of them, then the second, to the last. A window's
        last chunk is filled up with its last row, which changes no maximum.
        """
        order_E = chunk_E.argsort(stable=True)
        count_K = torch.bincount(chunk_E - span.start, minlength=span.stop - span.start)
        is_wanted_K = count_K > 0
        first_U, stop_U = self._chunk_rows[:-1][span][is_wanted_K], self._chunk_rows[1:][span][is_wanted_K]
        row_CU = first_U + torch.arange(CHUNK, device=chunk_E.device)[:, None]
        rows_RD = self.rows.take(row_CU.minimum(stop_U - 1).flatten(), memory)
        count_R, query_N = count_K[is_wanted_K].repeat(CHUNK), query_E[order_E].repeat(CHUNK)
        dots_CE = row_dots(self._queries_QD, rows_RD, query_N, count_R).view(CHUNK, -1)
        return torch.empty_like(dots_CE[0]).scatter_(0, order_E, dots_CE.amax(0))


class Products:
    """A window group against a query block, branch by branch.

    Good until the next ones are made in the same memory, and no longer than the memory's owner lives.
    """

    def __init__(self, group: WindowGroup, queries: list[BranchQueries], shared: Memory, dtype: torch.dtype) -> None:
        """Multiply.

        Args:
            group: W windows.
            queries: per branch, Q of them.
            shared: where what all branches give together stands.
            dtype: of the products.
        """
        self.branches = [BranchProducts(*pair, dtype) for pair in zip(group.branches, queries, strict=True)]
        self.shared = shared
        chunks = np.sum([branch.first_chunk for branch in self.branches], axis=0)
        num_threads = torch.get_num_threads() if shared.device.type == "cpu" else 1
        self.spans = list(spans(CHUNK * chunks, min(_ROUTINE_ROWS, _ALL_ROUTINE_ROWS // num_threads)))

    def broken_window(self) -> int | None:
        """The first window with a frame whose norm is no finite float32."""
        for branch in self.branches:
            if not branch.frame_norms.norm.isfinite():
                return branch.rows.first_broken_window()
        return None

    def fused(self, weights: Sequence[float]) -> "FusedProducts":
        """The products' scores with one weight a branch."""
        return FusedProducts(self, weights)


class FusedProducts:
    """Scores of windows under one weighting: by the products, (W, Q), and on demand by the routine.

    Good until the products are fused anew or others take their place.
    """

    def __init__(self, products: Products, weights: Sequence[float]):
        self._products, self._weights, self._memory = products, weights, products.shared
        self.scores_WQ = self._fuse("scores", weights, [branch.window_max_WQ for branch in products.branches])
        self.slack_WQ = self._fuse("slack", list(map(abs, weights)), [branch.slack_WQ for branch in products.branches])

    def _fuse(self, name: str, weights: Sequence[float], parts: list[torch.Tensor]) -> torch.Tensor:
        fused = torch.mul(parts[0], weights[0], out=self._memory.tensor(name, parts[0].shape))
        for weight, part in zip(weights[1:], parts[1:], strict=True):
            fused.add_(part, alpha=weight)
        return fused

    def at_least(self) -> torch.Tensor:
        """What each window's score reaches for certain, (W, Q), until `may_reach` is asked."""
        return torch.sub(self.scores_WQ, self.slack_WQ, out=self._memory.tensor("bounds", self.scores_WQ.shape))

    def may_reach(self, level_Q: torch.Tensor) -> torch.Tensor:
        """Whether each window's score may reach its query's level, (W, Q) bool."""
        at_most_WQ = torch.add(self.scores_WQ, self.slack_WQ, out=self._memory.tensor("bounds", self.scores_WQ.shape))
        return at_most_WQ >= level_Q

    def score(self, wanted_WQ: torch.Tensor) -> Pairs:
        """Score the wanted pairs, (W, Q) bool, with the routine."""
        num_parts = len(self._products.spans)
        parts: list[tuple[torch.Tensor, ...]] = [()] * num_parts
        waiting = enumerate(self._products.spans)

        def score_some() -> None:
            with borrowed_memory("routine", wanted_WQ.device) as memory:
                for part, (start, stop) in waiting:
                    parts[part] = self._score(start, stop, wanted_WQ, memory)

        on_threads(score_some, num_parts, wanted_WQ.device)
        query_P, window_P, branch_scores_PB = (torch.cat(column) for column in zip(*parts, strict=True))
        order_P = query_P.sort(stable=True).indices
        branch_scores_PB = branch_scores_PB[order_P]
        score_P = fuse(self._weights, branch_scores_PB.unbind(1))
        return Pairs(query_P[order_P], window_P[order_P], score_P, branch_scores_PB)

    def _score(
        self, start: int, stop: int, wanted_WQ: torch.Tensor, memory: Memory
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        place_P, query_P = wanted_WQ[start:stop].nonzero(as_tuple=True)
        window_P = place_P + start
        scores = [branch.score(start, stop, query_P, window_P, memory) for branch in self._products.branches]
        return query_P, window_P, torch.stack(scores, dim=1)


def fuse(weights: Sequence[float], branch_scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weighted sum over branches, always in the same order."""
    fused = weights[0] * branch_scores[0]
    for weight, scores in zip(weights[1:], branch_scores[1:], strict=True):
        fused += weight * scores
    return fused

"""Scores of a group of windows for a block of queries: matrix products select, exact dot products score.

The score of a window is sum_b w_b * max_f <q_b, v_bf>: each branch takes its own maximum over the window's frames.

A matrix product in float32 (mode `exact`), or in bfloat16 or float16 (`fast`), gives s(q, v), which serves for
selection only: `prvr_ray.retrieval.bounds` proves how far s may lie from the exact dot product r
(`prvr_ray.retrieval.exact_dots`). In both modes, r is computed for every pair that this bound leaves undecided, and all
returned scores are made of r.

Shape suffixes: Q queries, W windows, R rows (frames of all windows), D features, K chunks of at most CHUNK rows of one
window, U chunks that some pair needs, C rows of a chunk, P pairs of a query and a window, E pairs of a query and a
chunk, N pairs of a query and a row, B branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prvr_ray.retrieval.blocks import BranchRows, WindowGroup, spans
from prvr_ray.retrieval.bounds import Norms, measure, relative_slack, slack
from prvr_ray.retrieval.buffers import Memory, borrowed_memory
from prvr_ray.retrieval.exact_dots import row_dots
from prvr_ray.retrieval.matmul import multiplier, on_threads
from prvr_ray.retrieval.tiles import CHUNK, Strip, chunk_edges, chunk_maxima, first_chunks, tiles

# On a CPU the products of a tile, 4 MB, stay in the cache until their maxima are taken; a GPU needs a large tile to be
# busy.
_TILE_PRODUCTS = {"cpu": 1 << 20, "cuda": 1 << 28}
_MAX_TILE_ROWS = 1 << 14
# The most rows, over all branches, for which exact dots are computed at a time: on one thread, and on all threads
# together. That is 75 and 150 MB at 384 features, or half as much for two branches, since a thread takes one branch
# after the other in the same buffer.
_EXACT_ROWS, _ALL_EXACT_ROWS = 1 << 15, 1 << 16


@dataclass(frozen=True, eq=False)
class Pairs:
    """Scored pairs, sorted by query: rows of the query block, rows of the window group, and their float32 scores."""

    query_P: torch.Tensor
    window_P: torch.Tensor
    score_P: torch.Tensor
    branch_scores_PB: torch.Tensor


@dataclass(frozen=True, eq=False)
class BranchQueries:
    """One branch of some queries: (Q, D) float32 rows, their norms, and the buffers for their products."""

    rows_QD: torch.Tensor
    norms: Norms
    memory: Memory

    def __getitem__(self, rows: slice) -> "BranchQueries":
        return BranchQueries(self.rows_QD[rows], self.norms[rows], self.memory)


def num_maxima(rows: BranchRows) -> int:
    """Return how many maxima are kept for each query: one per chunk and one per window."""
    return int(first_chunks(rows.offsets)[-1]) + len(rows.offsets) - 1


class BranchProducts:
    """One branch's products of a group's frames and a query block, of which only the maxima are kept.

    The products themselves are one number per frame and query. Their maxima over chunks take an eighth of that, enough
    to find later which frames of a window may be its best.

    Attributes:
        first_chunk: the first chunk of each window and, last, the number of all chunks, (W + 1,).
        window_max_WQ: float32.
        frame_norms: the largest norms among the group's frames; not finite where a frame is not.
        slack_WQ: the error bound of each window's maximum, or (1, Q) where it is the same for all windows.
    """

    def __init__(self, rows: BranchRows, queries: BranchQueries, dtype: torch.dtype) -> None:
        queries_QD, memory = queries.rows_QD, queries.memory
        num_queries, dim = queries_QD.shape
        self.rows, self._queries_QD = rows, queries_QD
        self.first_chunk = first_chunks(rows.offsets)
        self._chunks = torch.from_numpy(self.first_chunk).to(queries_QD.device)
        self._chunk_rows = torch.from_numpy(chunk_edges(rows.offsets, self.first_chunk)).to(queries_QD.device)
        self._has_chunks = dtype != torch.float16
        if self._has_chunks:
            self._chunk_max_KQ = memory.tensor("chunks", (int(self.first_chunk[-1]), num_queries), dtype)
            self._kept_max_WQ = memory.tensor("windows", (len(rows.offsets) - 1, num_queries), dtype)
            self.frame_norms = self._multiply(queries_QD.to(dtype))
            self.window_max_WQ = memory.converted("windows in float32", self._kept_max_WQ, torch.float32)
        else:
            self.frame_norms, self.window_max_WQ = self._run_kernel(queries_QD.to(dtype))
        self.slack_WQ = slack(queries.norms, self.frame_norms, dim, on_tensor_cores=not self._has_chunks)[None]
        # A bfloat16 product is rounded in proportion to its own size, which is far below the product of the norms for
        # most pairs. Hence a bound per pair, which leaves fewer of them undecided than one per query.
        if relative := relative_slack(dtype):
            each_WQ = torch.abs(self.window_max_WQ, out=memory.tensor("slack", self.window_max_WQ.shape))
            self.slack_WQ = each_WQ.mul_(relative).add_(self.slack_WQ)

    def _run_kernel(self, queries_QD: torch.Tensor) -> tuple[Norms, torch.Tensor]:
        """Return the largest norms of all frames, and the maxima over windows, (W, Q) float32, from float16 products.

        No maxima over chunks are kept: an exact score then takes all frames of its window.
        """
        from prvr_ray.retrieval.kernels import window_maxima

        with borrowed_memory("tile", queries_QD.device) as memory:
            rows_RD = self.rows.read(0, len(self.rows.offsets) - 1, memory)
            rounded_RD = memory.converted("rounded", rows_RD, queries_QD.dtype)
            norms = measure(rows_RD, rounded_RD, memory).largest()
            if norms.norm.isfinite() and not norms.rounding.isfinite():
                raise ValueError("a frame has a value beyond 65,504, the largest of float16; frames must be unit rows")
            offsets = torch.from_numpy(self.rows.offsets).to(queries_QD.device)
            return norms, window_maxima([(1.0, queries_QD)], [(rounded_RD, offsets)])

    def _multiply(self, queries_QD: torch.Tensor) -> Norms:
        """Fill the maxima tile by tile; return the largest norms of all frames.

        Frames are measured here, while their tile is in the cache: reading, converting and measuring together take 0.12
        of the 3.2 s of a search in `exact` on one thread.
        """
        tile_rows = min(_TILE_PRODUCTS[queries_QD.device.type] // max(1, len(queries_QD)), _MAX_TILE_ROWS)
        cut = tiles(self.rows.offsets, self.first_chunk, tile_rows)
        multiply = multiplier(queries_QD)
        pending, largest = iter(cut), list[Norms]()  # all threads take their tiles from one list iterator

        def multiply_some() -> None:
            with borrowed_memory("tile", queries_QD.device) as memory:
                for strips in pending:
                    rows_RD = self.rows.read(strips[0].windows.start, strips[-1].windows.stop, memory)
                    rounded_RD = memory.converted("rounded", rows_RD, queries_QD.dtype)
                    largest.append(measure(rows_RD, rounded_RD, memory).largest())
                    self._keep_maxima(multiply(rounded_RD, memory), strips)

        on_threads(multiply_some, len(cut), queries_QD.device)
        return Norms(torch.stack([n.norm for n in largest]), torch.stack([n.rounding for n in largest])).largest()

    def _keep_maxima(self, products_RQ: torch.Tensor, strips: list[Strip]) -> None:
        """Store the maxima of a tile's products over chunks and over windows."""
        first = strips[0].rows.start
        for strip in strips:
            shape = (strip.windows.stop - strip.windows.start, -1, products_RQ.shape[1])
            products_WFQ = products_RQ[strip.rows.start - first : strip.rows.stop - first].view(shape)
            chunks_WKQ = self._chunk_max_KQ[strip.chunks].view(shape)
            chunk_maxima(products_WFQ, chunks_WKQ)
            torch.amax(chunks_WKQ, 1, out=self._kept_max_WQ[strip.windows])

    def score(
        self, start: int, stop: int, query_P: torch.Tensor, window_P: torch.Tensor, memory: Memory
    ) -> torch.Tensor:
        """Return the exact maxima of pairs with the windows [start, stop): (P,) float32.

        The frame with the largest exact dot product lies in a chunk whose largest product is at most twice the slack
        below the window's: once because that frame's product may be too low, once because the largest may be too high.
        Only such chunks are read again.
        """
        chunk_PK, max_PK = self._chunks_of(query_P, window_P)
        slack_P = self.slack_WQ.expand_as(self.window_max_WQ)[window_P, query_P]
        level_P = self.window_max_WQ[window_P, query_P] - 2 * slack_P
        pair_E, place_E = (max_PK >= level_P[:, None]).nonzero(as_tuple=True)
        span = slice(int(self.first_chunk[start]), int(self.first_chunk[stop]))
        score_E = self._score_chunks(query_P[pair_E], chunk_PK[pair_E, place_E], span, memory)
        return level_P.scatter_reduce_(0, pair_E, score_E, "amax", include_self=False)

    def _chunks_of(self, query_P: torch.Tensor, window_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the chunks of each pair's window and their largest products, both (P, K); -inf past the last chunk."""
        first_P, stop_P = self._chunks[window_P], self._chunks[window_P + 1]
        most = int((stop_P - first_P).max()) if len(query_P) else 1
        chunk_PK = first_P[:, None] + torch.arange(most, device=first_P.device)
        is_past_PK = chunk_PK >= stop_P[:, None]
        chunk_PK.masked_fill_(is_past_PK, 0)
        if self._has_chunks:
            max_PK = self._chunk_max_KQ[chunk_PK, query_P[:, None]]
        else:
            max_PK = self.window_max_WQ[window_P, query_P][:, None].repeat(1, most)
        return chunk_PK, max_PK.masked_fill_(is_past_PK, -torch.inf)

    def _score_chunks(self, query_E: torch.Tensor, chunk_E: torch.Tensor, span: slice, memory: Memory) -> torch.Tensor:
        """Return the exact maximum of each pair of a query and a chunk of one span: (E,) float32.

        Each chunk with a pair is read once. The rows are laid out as CHUNK layers, the first rows of all chunks, then
        their second rows, and so on, so the maximum over a chunk is one reduction over layers (`dots_CE`). A shorter
        last chunk repeats its last row, which changes no maximum.
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
    """The products of a window group and a query block, branch by branch.

    Valid until the next ones are made in the same buffers, and only while the buffers' owner is alive.
    """

    def __init__(self, group: WindowGroup, queries: list[BranchQueries], shared: Memory, dtype: torch.dtype) -> None:
        """Multiply the group by the queries.

        Args:
            group: W windows.
            queries: per branch, Q rows.
            shared: buffers for values that combine all branches.
            dtype: of the products.
        """
        self.branches = [BranchProducts(*pair, dtype) for pair in zip(group.branches, queries, strict=True)]
        self.shared = shared
        chunks = np.sum([branch.first_chunk for branch in self.branches], axis=0)
        num_threads = torch.get_num_threads() if shared.device.type == "cpu" else 1
        # Spans are counted in whole chunks, as they are read: 16,384 windows of one frame would otherwise take 300 MB.
        self.spans = list(spans(CHUNK * chunks, min(_EXACT_ROWS, _ALL_EXACT_ROWS // num_threads)))

    def broken_window(self) -> int | None:
        """Return the first window with a frame whose norm is not a finite float32, or None."""
        for branch in self.branches:
            if not branch.frame_norms.norm.isfinite():
                return branch.rows.first_broken_window()
        return None

    def fused(self, weights: Sequence[float]) -> "FusedProducts":
        """Return the windows' scores with one weight per branch."""
        return FusedProducts(self, weights)


class FusedProducts:
    """Scores of windows under one weighting: approximate ones from the products, (W, Q), and exact ones on demand.

    Valid until the products are fused with other weights, or the next products overwrite them.
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
        """Return a lower bound of each window's exact score, (W, Q), valid until `may_reach` is called."""
        return torch.sub(self.scores_WQ, self.slack_WQ, out=self._memory.tensor("bounds", self.scores_WQ.shape))

    def may_reach(self, level_Q: torch.Tensor) -> torch.Tensor:
        """Return whether each window's exact score may reach its query's level, (W, Q) bool."""
        at_most_WQ = torch.add(self.scores_WQ, self.slack_WQ, out=self._memory.tensor("bounds", self.scores_WQ.shape))
        return at_most_WQ >= level_Q

    def score(self, wanted_WQ: torch.Tensor) -> Pairs:
        """Score the wanted pairs, (W, Q) bool, exactly.

        One pass over everything that the bound leaves undecided. Scoring the likeliest windows first, so that they rule
        out others, needed fewer dot products but four passes, and was slower.
        """
        num_parts = len(self._products.spans)
        parts: list[tuple[torch.Tensor, ...]] = [()] * num_parts
        pending = enumerate(self._products.spans)  # shared by all threads; each part keeps its own slot of `parts`

        def score_some() -> None:
            with borrowed_memory("exact dots", wanted_WQ.device) as memory:
                for part, (start, stop) in pending:
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
    """Return the weighted sum over branches, always in the same order: another order would round differently."""
    fused = weights[0] * branch_scores[0]
    for weight, scores in zip(weights[1:], branch_scores[1:], strict=True):
        fused += weight * scores
    return fused

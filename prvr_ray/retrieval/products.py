"""Scores of a group of windows for a block of queries: quick products that select, and the one routine that scores.

The score of a window is sum_b w_b * max_f <q_b, v_bf>: each branch takes its own maximum over the window's frames.

**The routine.** r(q, v) is the float32 dot product of one query row and one frame row, computed by itself
(`torch.sparse.sampled_addmm` runs one dot product per wanted pair): equal rows give equal bits wherever they lie.
Every score that leaves this package is made of r.

**The products.** s(q, v) comes out of a matrix product in float32 (mode `exact`) or bfloat16 (`fast`) and only
selects. Let q', v' be the rows rounded to that type, t = <q, v> without any rounding, and u = 2^-24. Then

    |<q', v'> - t| <= |q - q'| |v'| + |q| |v - v'|    Cauchy-Schwarz on (q' - q) v' + q (v' - v); norms are measured
    |a - <q', v'>| <= g |q'| |v'|                     a, the sum before it is stored: D float32 additions in any order,
                                                      g = (D + 8) u / (1 - (D + 8) u)
    |s - a|        <= e / (1 - e) |s|                 stored in the type: e = 2^-8 for bfloat16, else 0
    |r - t|        <= g |q| |v|                       the routine's own additions

and the sum of the right sides bounds |s - r|: it is `slack`, with the largest norms of the group's frames and the
largest |s| that is kept. A product of two bfloat16 is exact in float32; the 8 spare roundings in g cover the weighted
sum over branches, of r and of s.

The maximum of s over some frames and that of r differ by no more than slack, for x + e / (1 - e) |x| rises with x. So
slack holds for branch maxima, weighted by |w_b| for the scores
of windows, and for the best window of a video. Hence a pair whose product lies more than the two slacks below a
known score cannot reach it. What the bound leaves open goes through the routine, in both modes.

Shape suffixes: Q queries, W windows, R rows (frames of all windows), D features, K chunks of at most CHUNK rows of one
window, C rows of a chunk, P pairs of a query and a window, E pairs of a query and a chunk, B branches.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prvr_ray.retrieval.blocks import BranchRows, WindowGroup, spans

CHUNK = 16  # rows under one kept maximum: what the routine visits again for a selected pair
TYPES = {"exact": torch.float32, "fast": torch.bfloat16}
_TILE_PRODUCTS = {"cpu": 1 << 19, "cuda": 1 << 28}  # a tile of products stays in the cache, or fills the device
_MAX_TILE_ROWS = 1 << 14
_ROUTINE_ROWS = 1 << 13  # rows in float32 at a time: 12 MB at 384 features
_MEASURED_ROWS = 1 << 10


@dataclass(frozen=True, eq=False)
class Norms:
    """Of some rows: Euclidean norms, and norms of what rounding to the product's type takes away."""

    norm: torch.Tensor
    rounding: torch.Tensor

    def __getitem__(self, rows: slice) -> "Norms":
        return Norms(self.norm[rows], self.rounding[rows])

    def largest(self) -> "Norms":
        """The largest of all rows."""
        return Norms(self.norm.amax(0), self.rounding.amax(0))

    def first_broken(self) -> int | None:
        """The first row that holds NaN or infinity."""
        broken = (~self.norm.isfinite()).nonzero()
        return int(broken[0]) if len(broken) else None


@dataclass(frozen=True, eq=False)
class Pairs:
    """Scored pairs, by query: rows of the query block, rows of the window group, and their scores in float32."""

    query_P: torch.Tensor
    window_P: torch.Tensor
    score_P: torch.Tensor
    branch_scores_PB: torch.Tensor


def measure(rows_ND: torch.Tensor, dtype: torch.dtype) -> Norms:
    """Measure each row for the bound, for products in `dtype`."""
    parts = [_measure(part_ND.float(), dtype) for part_ND in rows_ND.split(_MEASURED_ROWS)]
    norm_N, rounding_N = (torch.cat(column) for column in zip(*parts, strict=True))
    return Norms(norm_N, rounding_N)


def _measure(rows_ND: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    norm_N = torch.linalg.vector_norm(rows_ND, dim=1)
    if dtype == torch.float32:
        return norm_N, torch.zeros_like(norm_N)
    return norm_N, torch.linalg.vector_norm(rows_ND - rows_ND.to(dtype).float(), dim=1)


def slack(
    queries: Norms, frames: Norms, dim: int, dtype: torch.dtype, largest_Q: torch.Tensor | None = None
) -> torch.Tensor:
    """The bound on |s - r| of the module's docstring, (Q,).

    Args:
        queries: of Q queries.
        frames: the largest of all frames.
        dim: D.
        dtype: of the products.
        largest_Q: the largest |s| that is compared; None: what the norms allow.
    """
    unit = (dim + 8) * 2.0**-24
    g = unit / (1 - unit)
    e = 2.0**-8 if dtype == torch.bfloat16 else 0.0
    rounded_Q = (queries.norm + queries.rounding) * (frames.norm + frames.rounding)
    operands_Q = queries.rounding * (frames.norm + frames.rounding) + queries.norm * frames.rounding
    largest_Q = (1 + g) * rounded_Q if largest_Q is None else largest_Q
    bound_Q = operands_Q + g * rounded_Q + e / (1 - e) * largest_Q + g * queries.norm * frames.norm
    return 1.001 * bound_Q + 1e-30  # the bound's own arithmetic, and products that underflow


class BranchProducts:
    """One branch: products of a group's frames and a query block, kept as maxima over chunks and over windows.

    Attributes:
        window_max_WQ: float32.
        slack_Q: the bound for every maximum that is kept.
    """

    def __init__(
        self, rows: BranchRows, frames: Norms, queries_QD: torch.Tensor, queries: Norms, dtype: torch.dtype
    ) -> None:
        self._rows, self._queries_QD = rows, queries_QD
        lengths_W = np.diff(rows.offsets)
        chunks = np.concatenate([[0], np.cumsum(-(-lengths_W // CHUNK))])
        num_queries, dim = queries_QD.shape
        self._chunks = torch.from_numpy(chunks).to(queries_QD.device)
        self._chunk_max_KQ = queries_QD.new_empty((int(chunks[-1]), num_queries), dtype=dtype)
        self.window_max_WQ = queries_QD.new_empty((len(lengths_W), num_queries))
        queries_DQ = queries_QD.to(dtype).T
        tile_rows = min(_TILE_PRODUCTS[queries_QD.device.type] // max(1, num_queries), _MAX_TILE_ROWS)
        for start, stop in _equal_runs(lengths_W, tile_rows):
            products_WFQ = (rows.read(start, stop).to(dtype) @ queries_DQ).unflatten(0, (stop - start, -1))
            chunk_max_WKQ = self._chunk_max_KQ[chunks[start] : chunks[stop]].unflatten(0, (stop - start, -1))
            _chunk_maxima(products_WFQ, chunk_max_WKQ)
            self.window_max_WQ[start:stop] = chunk_max_WKQ.amax(1)
        largest_Q = self._chunk_max_KQ.abs().amax(0).float() if dtype == torch.bfloat16 else None
        self.slack_Q = slack(queries, frames, dim, dtype, largest_Q)

    def score(self, start: int, stop: int, query_P: torch.Tensor, window_P: torch.Tensor) -> torch.Tensor:
        """The routine's maxima for pairs with the windows [start, stop), sorted by query: (P,) float32."""
        pair_E, place_E = self._open_chunks(query_P, window_P)
        offsets = torch.from_numpy(self._rows.offsets - self._rows.offsets[start]).to(query_P.device)
        window_E = window_P[pair_E]
        first_E = offsets[window_E] + place_E * CHUNK
        stop_E = (first_E + CHUNK).minimum(offsets[window_E + 1])
        dots_EC = row_dots(self._queries_QD, self._rows.read(start, stop), query_P[pair_E], first_E, stop_E)
        best_P = dots_EC.new_full(query_P.shape, -torch.inf)
        return best_P.scatter_reduce_(0, pair_E, dots_EC.amax(1), "amax")

    def _open_chunks(self, query_P: torch.Tensor, window_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The chunks that may hold a pair's best frame: (E,) pairs, ascending, and (E,) places within the window."""
        if not len(query_P):
            return query_P, query_P
        first_P, last_P = self._chunks[window_P], self._chunks[window_P + 1] - 1
        chunk_PK = first_P[:, None] + torch.arange(int((last_P - first_P).max()) + 1, device=first_P.device)
        is_own_PK = chunk_PK <= last_P[:, None]
        max_PK = self._chunk_max_KQ[chunk_PK.minimum(last_P[:, None]), query_P[:, None]]
        reached_P = self.window_max_WQ[window_P, query_P] - 2 * self.slack_Q[query_P]
        pair_E, place_E = (is_own_PK & (max_PK >= reached_P[:, None])).nonzero(as_tuple=True)
        return pair_E, place_E


class Products:
    """A window group against a query block, branch by branch."""

    def __init__(
        self,
        group: WindowGroup,
        frame_norms: list[Norms],
        queries: list[torch.Tensor],
        query_norms: list[Norms],
        dtype: torch.dtype,
    ):
        """Multiply.

        Args:
            group: W windows.
            frame_norms: per branch, the largest norms of the group's frames.
            queries: per branch, (Q, D) float32 rows.
            query_norms: per branch, norms of those rows.
            dtype: of the products.
        """
        self.branches = [
            BranchProducts(*arguments, dtype)
            for arguments in zip(group.branches, frame_norms, queries, query_norms, strict=True)
        ]
        self.spans = list(spans(np.sum([branch.offsets for branch in group.branches], axis=0), _ROUTINE_ROWS))

    def fused(self, weights: Sequence[float]) -> "FusedProducts":
        """The products' scores with one weight a branch."""
        return FusedProducts(self, weights)


class FusedProducts:
    """Scores of windows under one weighting: by the products, (W, Q), and on demand by the routine."""

    def __init__(self, products: Products, weights: Sequence[float]):
        self._products, self._weights = products, weights
        self.scores_WQ = fuse(weights, [branch.window_max_WQ for branch in products.branches])
        self.slack_Q = sum(abs(w) * branch.slack_Q for w, branch in zip(weights, products.branches, strict=True))

    def score(self, wanted_WQ: torch.Tensor) -> Pairs:
        """Score the wanted pairs, (W, Q) bool, with the routine."""
        parts = [self._score(start, stop, wanted_WQ) for start, stop in self._products.spans]
        query_P, window_P, branch_scores_PB = (torch.cat(column) for column in zip(*parts, strict=True))
        order_P = query_P.sort(stable=True).indices
        branch_scores_PB = branch_scores_PB[order_P]
        score_P = fuse(self._weights, branch_scores_PB.unbind(1))
        return Pairs(query_P[order_P], window_P[order_P], score_P, branch_scores_PB)

    def _score(self, start: int, stop: int, wanted_WQ: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query_P, place_P = wanted_WQ[start:stop].T.nonzero(as_tuple=True)
        window_P = place_P + start
        scores = [branch.score(start, stop, query_P, window_P) for branch in self._products.branches]
        return query_P, window_P, torch.stack(scores, dim=1)


def fuse(weights: Sequence[float], branch_scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weighted sum over branches, always in the same order."""
    fused = weights[0] * branch_scores[0]
    for weight, scores in zip(weights[1:], branch_scores[1:], strict=True):
        fused += weight * scores
    return fused


def window_dots(
    rows: BranchRows, queries_QD: torch.Tensor, query_P: torch.Tensor, window_P: torch.Tensor
) -> torch.Tensor:
    """The routine on all frames of some windows.

    Args:
        query_P, window_P: pairs in any order.

    Returns:
        (P, F) float32 with F the longest window of a pair, -inf past a window's end.
    """
    offsets = torch.from_numpy(rows.offsets).to(query_P.device)
    lengths_P = offsets[window_P + 1] - offsets[window_P]
    dots_PF = queries_QD.new_full((len(query_P), int(lengths_P.max()) if len(query_P) else 1), -torch.inf)
    for start, stop in spans(rows.offsets, _ROUTINE_ROWS):
        mine_P = ((window_P >= start) & (window_P < stop)).nonzero().flatten()
        if len(mine_P):
            mine_P = mine_P[query_P[mine_P].argsort(stable=True)]
            first_P = offsets[window_P[mine_P]] - offsets[start]
            stop_P = first_P + lengths_P[mine_P]
            dots = row_dots(queries_QD, rows.read(start, stop), query_P[mine_P], first_P, stop_P)
            dots_PF[mine_P, : dots.shape[1]] = dots
    return dots_PF


def row_dots(
    queries_QD: torch.Tensor,
    rows_RD: torch.Tensor,
    query_E: torch.Tensor,
    first_E: torch.Tensor,
    stop_E: torch.Tensor,
) -> torch.Tensor:
    """The routine: dot products of a query with consecutive rows, for E such wishes.

    Args:
        queries_QD, rows_RD: float32.
        query_E: ascending.
        first_E, stop_E: rows [first, stop) of rows_RD.

    Returns:
        (E, C) float32 with C the longest range, -inf past a shorter one's end. Each value depends on its two rows
        alone.
    """
    length_E = stop_E - first_E
    longest = int(length_E.max()) if len(length_E) else 1
    place_C = torch.arange(longest, device=first_E.device)
    is_wanted_EC = place_C < length_E[:, None]
    column_N = (first_E[:, None] + place_C)[is_wanted_EC]
    per_query_Q = torch.zeros(len(queries_QD) + 1, dtype=torch.int64, device=first_E.device)
    edges = per_query_Q.index_add_(0, query_E + 1, length_E).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        wanted = torch.sparse_csr_tensor(
            edges, column_N, rows_RD.new_zeros(len(column_N)), (len(queries_QD), len(rows_RD)), check_invariants=False
        )
    dots_N = torch.sparse.sampled_addmm(wanted, queries_QD, rows_RD.T, beta=0.0).values()
    return dots_N.new_full(is_wanted_EC.shape, -torch.inf).masked_scatter_(is_wanted_EC, dots_N)


def _chunk_maxima(products_WFQ: torch.Tensor, chunk_max_WKQ: torch.Tensor) -> None:
    """Write the maximum of every CHUNK frames, the last chunk of a window being shorter."""
    whole = products_WFQ.shape[1] // CHUNK
    if whole:
        chunks_WKCQ = products_WFQ[:, : whole * CHUNK].unflatten(1, (whole, CHUNK))
        torch.amax(chunks_WKCQ, 2, out=chunk_max_WKQ[:, :whole])
    if whole < chunk_max_WKQ.shape[1]:
        torch.amax(products_WFQ[:, whole * CHUNK :], 1, keepdim=True, out=chunk_max_WKQ[:, whole:])


def _equal_runs(lengths_W: np.ndarray, max_rows: int) -> Iterator[tuple[int, int]]:
    """Cut sorted windows into ranges of one length and of about max_rows rows."""
    borders = np.flatnonzero(np.diff(lengths_W)) + 1
    for low, high in zip([0, *borders.tolist()], [*borders.tolist(), len(lengths_W)], strict=True):
        step = max(1, max_rows // int(lengths_W[low]))
        for start in range(low, high, step):
            yield start, min(start + step, high)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Keep float32 products and bfloat16 sums as the bound assumes them, whatever the process has set."""
    precision = torch.get_float32_matmul_precision()
    cuda = torch.backends.cuda.matmul
    reduced = cuda.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    cuda.allow_bf16_reduced_precision_reduction = False
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        cuda.allow_bf16_reduced_precision_reduction = reduced

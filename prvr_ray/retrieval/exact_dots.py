"""Exact dot products: r(q, v), the float32 dot product of one query row and one frame row.

A matrix product may add in another order depending on its shape and on a row's position. `torch.sparse.sampled_addmm`
computes one separate dot product per wanted pair, so on a CPU equal rows give equal bits wherever they lie. On CUDA,
cuSPARSE promises no such thing, so where Triton runs a kernel of ours adds the features in a fixed order. Every score
that this package returns is made of r.

Shape suffixes: Q queries, W windows, R rows (frames of all windows), D features, P pairs of a query and a window, N
pairs of a query and a row, F frames of a window.
"""

import warnings

import torch

from prvr_ray.retrieval.blocks import BranchRows, spans
from prvr_ray.retrieval.buffers import borrowed_memory
from prvr_ray.retrieval.matmul import has_kernels

# Torch warns of sparse CSR tensors once per process. Trigger the warning here, on import: warning filters are
# process-wide, so the threads that compute must not change them.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)

_CURVE_ROWS = 1 << 13  # rows that `window_dots` reads at a time: 12 MB in float32 at 384 features


def window_dots(
    rows: BranchRows, queries_QD: torch.Tensor, query_P: torch.Tensor, window_P: torch.Tensor
) -> torch.Tensor:
    """Compute the dot products of queries with all frames of some windows.

    Args:
        rows: one branch's frames of the windows.
        queries_QD: float32 unit rows.
        query_P, window_P: pairs in any order.

    Returns:
        (P, F) float32, where F is the length of the longest window of a pair; -inf past a window's end.
    """
    offsets = torch.from_numpy(rows.offsets).to(query_P.device)
    longest = int(offsets.diff()[window_P].max()) if len(query_P) else 1
    dots_PF = queries_QD.new_full((len(query_P), longest), -torch.inf)
    with borrowed_memory("curves", query_P.device) as memory:
        for start, stop in spans(rows.offsets, _CURVE_ROWS):
            mine_P = ((window_P >= start) & (window_P < stop)).nonzero().flatten()
            if not len(mine_P):
                continue
            mine_P = mine_P[window_P[mine_P].argsort(stable=True)]
            count_W = torch.bincount(window_P[mine_P] - start, minlength=stop - start)
            place_N, order_N, count_R = _by_row(count_W, offsets[start : stop + 1] - offsets[start])
            rows_RD, pair_N = rows.read(start, stop, memory), mine_P[order_N]
            dots_PF[pair_N, place_N] = row_dots(queries_QD, rows_RD, query_P[pair_N], count_R)
    return dots_PF


def _by_row(count_W: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pair each frame row with every query that wants its window, row by row.

    Args:
        count_W: how many pairs of a query and a window each window has.
        offsets: (W + 1,) window w has the rows [offsets[w], offsets[w + 1]).

    Returns:
        For each pair of a row and a query: the row's index within its window, and the index of the pair of query and
        window that it belongs to, when those are sorted by window; both (N,). For each row: how many queries it is
        paired with, (R,).
    """
    lengths_W = offsets.diff()
    count_R = count_W.repeat_interleave(lengths_W)
    row_R = torch.arange(len(count_R), device=count_R.device)
    row_N = row_R.repeat_interleave(count_R)
    first_pair_R = (count_W.cumsum(0) - count_W).repeat_interleave(lengths_W)
    first_R = count_R.cumsum(0) - count_R  # the first of a row's entries in (N,); the others follow it
    pair_N = torch.arange(len(row_N), device=row_N.device) + (first_pair_R - first_R)[row_N]
    return (row_R - offsets[:-1].repeat_interleave(lengths_W))[row_N], pair_N, count_R


def row_dots(
    queries_QD: torch.Tensor, rows_RD: torch.Tensor, query_N: torch.Tensor, count_R: torch.Tensor
) -> torch.Tensor:
    """Compute the dot products of N pairs of a query and a row; each depends on its own two rows only.

    The order is row by row because a frame row then stays in the cache for all of its queries: 66,000 dots take 2.3 ms
    instead of the 4.5 ms of the order query by query.

    Args:
        queries_QD, rows_RD: float32.
        query_N: the queries of the first row, then those of the second, and so on.
        count_R: how many queries each row is paired with.

    Returns:
        (N,) float32.
    """
    if has_kernels(rows_RD.device):
        from prvr_ray.retrieval.kernels import pair_dots

        row_N = torch.arange(len(rows_RD), device=rows_RD.device).repeat_interleave(count_R)
        return pair_dots(queries_QD, rows_RD, query_N, row_N)
    edges = torch.cat([count_R.new_zeros(1), count_R.cumsum(0)])
    # The sparsity pattern is the set of pairs. It is not checked: our own code made it, and a check reads all of it.
    wanted = torch.sparse_csr_tensor(
        edges, query_N, rows_RD.new_zeros(len(query_N)), (len(rows_RD), len(queries_QD)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(wanted, rows_RD, queries_QD.T, beta=0.0).values()

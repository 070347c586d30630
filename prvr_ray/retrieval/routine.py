"""The one routine that scores: r(q, v), the float32 dot product of one query row and one frame row.

It is computed by itself (`torch.sparse.sampled_addmm` runs one dot product per wanted pair), so equal rows give equal
bits wherever they lie. Every score that leaves this package is made of r.

Shape suffixes: Q queries, W windows, R rows (frames of all windows), D features, P pairs of a query and a window, N
pairs of a query and a row, F frames of a window.
"""

import warnings

import torch

from prvr_ray.retrieval.blocks import BranchRows, spans
from prvr_ray.retrieval.memory import borrowed_memory

with warnings.catch_warnings():  # torch says it once in a process; filters must not be changed on several threads
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)

_CURVE_ROWS = 1 << 13  # rows that `window_dots` reads at a time: 12 MB at 384 features


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
    """Every row of a window meets all of the window's pairs, of which there are count_W; row by row.

    Returns:
        Of each meeting the row's place in its window and the pair's among all pairs, (N,) both; of each row the number
        of its meetings, (R,).
    """
    lengths_W = offsets.diff()
    count_R = count_W.repeat_interleave(lengths_W)
    row_R = torch.arange(len(count_R), device=count_R.device)
    row_N = row_R.repeat_interleave(count_R)
    first_pair_R = (count_W.cumsum(0) - count_W).repeat_interleave(lengths_W)
    first_meeting_R = count_R.cumsum(0) - count_R
    pair_N = torch.arange(len(row_N), device=row_N.device) + (first_pair_R - first_meeting_R)[row_N]
    return (row_R - offsets[:-1].repeat_interleave(lengths_W))[row_N], pair_N, count_R


def row_dots(
    queries_QD: torch.Tensor, rows_RD: torch.Tensor, query_N: torch.Tensor, count_R: torch.Tensor
) -> torch.Tensor:
    """The routine: the dot products of N pairs of a query and a row, each of which depends on its two rows alone.

    Row by row, for a row stays in the cache while its queries come: half the time of the other order.

    Args:
        queries_QD, rows_RD: float32.
        query_N: the queries of the first row, then those of the second, and so on.
        count_R: how many queries each row has.

    Returns:
        (N,) float32.
    """
    edges = torch.cat([count_R.new_zeros(1), count_R.cumsum(0)])
    wanted = torch.sparse_csr_tensor(
        edges, query_N, rows_RD.new_zeros(len(query_N)), (len(rows_RD), len(queries_QD)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(wanted, rows_RD, queries_QD.T, beta=0.0).values()

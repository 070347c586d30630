"""Triton kernels for CUDA: window maxima of ragged windows without a product matrix, and exact dots in a fixed order.

`window_maxima` replaces product, chunk maxima and window maxima: a program multiplies a tile of queries by a few
windows, one after another, and keeps one maximum per query and window in registers, so the (frames, queries) products
never reach memory. `pair_dots` sums each pair's features in one order that depends on the number of features alone, so
equal rows give equal bits by construction.

Import this module only where `prvr_ray.retrieval.matmul.has_kernels` says that a device takes it. With
TRITON_INTERPRET=1 the kernels run on CPU tensors, which is how the tests check their values. Nothing here has been
timed on a GPU.

Shape suffixes: Q queries, W windows, R rows (frames of all windows), D features, N pairs of a query and a row, B
branches.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

WINDOWS_PER_PROGRAM = 16
TILE = {"BQ": 128, "BF": 128, "BK": 64}  # 64 KB of shared memory in two stages; no spills on sm_80 to sm_90
NUM_WARPS, NUM_STAGES = 8, 2


@triton.jit
def add_window_maxima(
    queries, rows, offsets, bias, best, weight, num_queries, num_windows, dim,
    HAS_BIAS: tl.constexpr, IS_FIRST: tl.constexpr, WINDOWS: tl.constexpr,
    BQ: tl.constexpr, BF: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write weight x maximum of each window for each query to best (W, Q), or add it where IS_FIRST is false."""
    query_BQ = tl.program_id(0) * BQ + tl.arange(0, BQ)
    is_query = query_BQ < num_queries
    first = tl.program_id(1) * WINDOWS
    for window in range(first, min(first + WINDOWS, num_windows)):
        start = tl.load(offsets + window)
        stop = tl.load(offsets + window + 1)
        best_BQ = tl.full((BQ,), float("-inf"), tl.float32)
        for frame in range(start, stop, BF):
            row_BF = frame + tl.arange(0, BF)
            is_row = row_BF < stop
            sum_QF = tl.zeros((BQ, BF), tl.float32)
            # `range`, not `static_range`: unrolled, the copies ahead need 196 KB of shared memory and more.
            for feature in range(0, dim, BK):
                feature_BK = feature + tl.arange(0, BK)
                is_feature = feature_BK < dim
                query_QK = tl.load(
                    queries + query_BQ.to(tl.int64)[:, None] * dim + feature_BK[None, :],
                    mask=is_query[:, None] & is_feature[None, :], other=0.0,
                )  # fmt: skip
                row_KF = tl.load(
                    rows + row_BF.to(tl.int64)[None, :] * dim + feature_BK[:, None],
                    mask=is_row[None, :] & is_feature[:, None], other=0.0,
                )  # fmt: skip
                # "ieee" affects float32 operands only: TF32 would break the bound.
                sum_QF = tl.dot(query_QK, row_KF, sum_QF, input_precision="ieee")
            sum_QF = tl.where(is_row[None, :], sum_QF, float("-inf"))
            # A plain maximum drops NaN, and a window that holds one must not look like any other.
            best_BQ = tl.maximum(best_BQ, tl.max(sum_QF, axis=1), propagate_nan=tl.PropagateNan.ALL)
            has_nan_BQ = tl.max((sum_QF != sum_QF).to(tl.int32), axis=1)
            best_BQ = tl.where(has_nan_BQ > 0, float("nan"), best_BQ)
        place_BQ = first.to(tl.int64) * num_queries + (window - first) * num_queries + query_BQ
        value_BQ = weight * best_BQ
        if HAS_BIAS:
            value_BQ = value_BQ - tl.load(bias + window)
        if not IS_FIRST:
            value_BQ = value_BQ + tl.load(best + place_BQ, mask=is_query, other=0.0)
        tl.store(best + place_BQ, value_BQ, mask=is_query)


@triton.jit
def sum_pairs(queries, rows, query_of, row_of, dots, num_pairs, dim, BN: tl.constexpr):
    """Write the dot product of each pair: features are added one after another, in float32."""
    pair_BN = tl.program_id(0) * BN + tl.arange(0, BN)
    is_pair = pair_BN < num_pairs
    query_BN = tl.load(query_of + pair_BN, mask=is_pair, other=0)
    row_BN = tl.load(row_of + pair_BN, mask=is_pair, other=0)
    sum_BN = tl.zeros((BN,), tl.float32)
    for feature in range(0, dim):
        query_value_BN = tl.load(queries + query_BN * dim + feature, mask=is_pair, other=0.0)
        sum_BN += query_value_BN * tl.load(rows + row_BN * dim + feature, mask=is_pair, other=0.0)
    tl.store(dots + pair_BN, sum_BN, mask=is_pair)


def window_maxima(
    queries: Sequence[tuple[float, torch.Tensor]],
    branches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    bias_W: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return sum_b w_b max_f <q_b, v_bf> of each window, less its bias.

    Args:
        queries: per branch, its weight and (Q, D) rows, in the type of the frames.
        branches: per branch, (R, D) rows in float16, bfloat16 or float32, and int64 offsets (W + 1,); each branch has
            offsets of its own, and no window is empty.
        bias_W: (W,) float32, subtracted; None: none.

    Returns:
        (W, Q) float32, NaN where a frame of the window or the query holds NaN.
    """
    num_queries, num_windows = len(queries[0][1]), len(branches[0][1]) - 1
    best_WQ = queries[0][1].new_empty((num_windows, num_queries), dtype=torch.float32)
    if not best_WQ.numel():
        return best_WQ
    grid = triton.cdiv(num_queries, TILE["BQ"]), triton.cdiv(num_windows, WINDOWS_PER_PROGRAM)
    for number, ((weight, rows_QD), (rows_RD, offsets)) in enumerate(zip(queries, branches, strict=True)):
        add_window_maxima[grid](
            rows_QD.contiguous(), rows_RD.contiguous(), offsets, bias_W if bias_W is not None else best_WQ, best_WQ,
            weight, num_queries, num_windows, rows_QD.shape[1],
            HAS_BIAS=bias_W is not None and number == 0, IS_FIRST=number == 0, WINDOWS=WINDOWS_PER_PROGRAM,
            num_warps=NUM_WARPS, num_stages=NUM_STAGES, **TILE,
        )  # fmt: skip
    return best_WQ


def pair_dots(
    queries_QD: torch.Tensor, rows_RD: torch.Tensor, query_N: torch.Tensor, row_N: torch.Tensor
) -> torch.Tensor:
    """Return the dot product of each pair, (N,) float32; it depends on the pair's own two rows only.

    Args:
        queries_QD, rows_RD: float32.
        query_N, row_N: int64, the rows of each pair.
    """
    dots_N = queries_QD.new_empty(len(query_N))
    if len(query_N):
        block = 128
        sum_pairs[(triton.cdiv(len(query_N), block),)](
            queries_QD.contiguous(), rows_RD.contiguous(), query_N, row_N, dots_N,
            len(query_N), queries_QD.shape[1], BN=block,
        )  # fmt: skip
    return dots_N

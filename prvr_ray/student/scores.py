"""Cosine and dot scores of queries with videos from one set of products, differentiable where it matters.

The products of all queries with all frames are computed once and without a gradient. They select the winning frames;
only the chosen pairs (one winner per query, video and score, and the frames of a query's own video) carry gradients.
On two cores at the paper's shape the backward pass of the chosen pairs takes a tenth of the dense one's time.

Shapes: N queries, V videos, R frame rows of all videos together, K chosen pairs of a query and a row, D features.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prvr_ray.student.model import Layout

TINY = 1e-12  # smallest norm that is divided by
QUERIES_PER_TILE = 512  # bounds the memory of large batches: the products of 512 queries and 72,000 frames take 150 MB


@dataclass(frozen=True)
class OwnFrames:
    """The frames of each query's own video: K pairs of a query and a frame row.

    layout: the queries as sequences, the pairs as rows. row_K: int64, the frame row of each pair.
    """

    layout: Layout
    row_K: Tensor

    @classmethod
    def of(cls, video_of_query_N: Tensor, frames: Layout) -> "OwnFrames":
        """All pairs; a query whose video is not in `frames` (-1) has none."""
        start_V = frames.lengths_S.cumsum(0) - frames.lengths_S
        is_here_N = video_of_query_N >= 0
        count_N = torch.zeros_like(video_of_query_N)
        count_N[is_here_N] = frames.lengths_S[video_of_query_N[is_here_N]]
        layout = Layout.from_lengths(count_N)
        return cls(layout, start_V[video_of_query_N[layout.sequence_R]] + layout.position_R)

    @classmethod
    def none(cls, num_queries: int, device: torch.device) -> "OwnFrames":
        """No pairs."""
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return cls(Layout(nothing, nothing, nothing.new_zeros(num_queries), 0), nothing)

    @property
    def query_K(self) -> Tensor:
        """int64, the query of each pair."""
        return self.layout.sequence_R


@dataclass(frozen=True)
class Scores:
    """Scores of N queries with V videos: the maximum over frames of the cosine and of the dot product.

    own_cosine_K: cosine of each query with the frames of its own video.
    """

    cosine_NV: Tensor
    dot_NV: Tensor
    own_cosine_K: Tensor


def score(
    queries_ND: Tensor,
    frames_RD: Tensor,
    layout: Layout,
    own: OwnFrames | None = None,
    queries_per_tile: int = QUERIES_PER_TILE,
) -> Scores:
    """Score every query with every video.

    Args:
        layout: of the frame rows; no video is empty.
        own: also return the cosines of these pairs.
        queries_per_tile: products of so many queries with all frames are held at a time.
    """
    own = own or OwnFrames.none(len(queries_ND), queries_ND.device)
    scale_N, scale_R = _inverse_norms(queries_ND), _inverse_norms(frames_RD)
    starts = range(0, max(len(queries_ND), 1), queries_per_tile)
    tiles = [_search_tile(queries_ND, slice(n, n + queries_per_tile), frames_RD, scale_R, layout, own) for n in starts]
    dot_NV, dot_row_NV, cosine_NV, cosine_row_NV, own_product_K = (
        torch.cat(parts) for parts in zip(*tiles, strict=True)
    )

    query_NV = torch.arange(len(queries_ND), device=queries_ND.device)[:, None].expand_as(dot_row_NV)
    products = [dot_NV, cosine_NV / scale_R[cosine_row_NV], own_product_K]
    rows, queries = [dot_row_NV, cosine_row_NV, own.row_K], [query_NV, query_NV, own.query_K]
    chosen_K = _ChosenProducts.apply(queries_ND, frames_RD, *(_flat(parts) for parts in (products, queries, rows)))
    dots, cosines, own_K = chosen_K.split([part.numel() for part in rows])
    return Scores(
        cosine_NV=cosines.view_as(dot_NV) * scale_N[:, None] * scale_R[cosine_row_NV],
        dot_NV=dots.view_as(dot_NV),
        own_cosine_K=own_K * scale_N[own.query_K] * scale_R[own.row_K],
    )


@torch.no_grad()
def _search_tile(
    queries_ND: Tensor, tile: slice, frames_RD: Tensor, scale_R: Tensor, layout: Layout, own: OwnFrames
) -> tuple[Tensor, ...]:
    """Of a tile of queries: best dot and row, best cosine (times the query's length) and row, own products."""
    products_RN = frames_RD @ queries_ND[tile].T
    dot_NV, dot_row_NV = find_best_rows(products_RN, layout)
    cosine_NV, cosine_row_NV = find_best_rows(products_RN * scale_R[:, None], layout)
    is_here_K = (own.query_K >= tile.start) & (own.query_K < tile.stop)
    own_product_K = products_RN[own.row_K[is_here_K], own.query_K[is_here_K] - tile.start]
    return dot_NV, dot_row_NV, cosine_NV, cosine_row_NV, own_product_K


def _flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


@torch.no_grad()
def max_cosines(
    queries_ND: Tensor, frames_RD: Tensor, layout: Layout, queries_per_tile: int = QUERIES_PER_TILE
) -> Tensor:
    """The highest cosine of each query with the frames of each video: (N, V), without gradient."""
    queries_ND, frames_RD = F.normalize(queries_ND, dim=1), F.normalize(frames_RD, dim=1)
    tiles = queries_ND.detach().split(queries_per_tile)
    return torch.cat([_segment_max(frames_RD.detach() @ tile_ND.T, layout).T for tile_ND in tiles])


@torch.no_grad()
def find_best_rows(values_RN: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The maximum of each video's rows and the row that has it (the last of equal ones), both (N, V).

    NaN wins, so that it shows in the loss; its row is then meaningless but valid.
    """
    best_VN = _segment_max(values_RN, layout)
    # Row numbers as floats: on a CPU the scatter kernel for integers is fifteen times slower. Exact to 2**24 rows.
    row_R1 = torch.arange(len(values_RN), device=values_RN.device, dtype=values_RN.dtype)[:, None]
    candidate_RN = torch.where(values_RN == best_VN[layout.sequence_R], row_R1, 0.0)
    return best_VN.T, _segment_max(candidate_RN, layout).T.long()


def _segment_max(values_RN: Tensor, layout: Layout) -> Tensor:
    best_VN = values_RN.new_zeros(layout.num_sequences, values_RN.shape[1])
    video_RN = layout.sequence_R[:, None].expand_as(values_RN)
    return best_VN.scatter_reduce(0, video_RN, values_RN, "amax", include_self=False)


def _inverse_norms(x_nD: Tensor) -> Tensor:
    return x_nD.norm(dim=1).clamp(min=TINY).reciprocal()


class _ChosenProducts(torch.autograd.Function):
    """Dot products that are known already, with the gradient of the chosen pairs only."""

    @staticmethod
    def forward(
        ctx: Any, queries_ND: Tensor, frames_RD: Tensor, product_K: Tensor, query_K: Tensor, row_K: Tensor
    ) -> Tensor:
        ctx.save_for_backward(queries_ND, frames_RD, query_K, row_K)
        return product_K

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries_ND, frames_RD, query_K, row_K = ctx.saved_tensors
        grad_ND = _weighted_sums(frames_RD, row_K, query_K, grads[0], len(queries_ND))
        grad_RD = _weighted_sums(queries_ND, query_K, row_K, grads[0], len(frames_RD))
        return grad_ND, grad_RD, None, None, None


def _weighted_sums(x_nD: Tensor, from_K: Tensor, to_K: Tensor, weight_K: Tensor, num_sums: int) -> Tensor:
    """sums[to] += weight * x[from] over all pairs; sorted first, so the result does not depend on thread timing."""
    sorted_to_K, order_K = to_K.sort(stable=True)
    starts = torch.searchsorted(sorted_to_K, torch.arange(num_sums, device=to_K.device))
    return F.embedding_bag(from_K[order_K], x_nD, starts, mode="sum", per_sample_weights=weight_K[order_K])

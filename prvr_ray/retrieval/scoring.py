"""Exact top-k videos for many queries: blocks of windows stream by, the queries stay.

`search` is the whole interface. It never holds a (queries, videos) matrix of the corpus: only the scores of one group
of windows for one block of queries, and k answers a query.

Shape suffixes: Q queries, W windows, P pairs of a query and a window, K places, D features, B branches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prvr_ray.retrieval.blocks import Array, FrameBlock, Names, WindowGroup, as_tensor, window_groups
from prvr_ray.retrieval.products import TYPES, Norms, Pairs, Products, full_precision, fuse, measure, window_dots
from prvr_ray.retrieval.topk import Answers, merge_top_k, side_by_side

__all__ = ["FrameBlock", "QueryBlocks", "TopK", "search"]

_QUERY_BLOCK = {"cpu": 1024, "cuda": 16_384}
_GROUP_ROWS = 1 << 17  # rows of the first branch in one group: 100 MB of float16 at 384 features


@dataclass(frozen=True, eq=False)
class TopK:
    """The answers to Q queries, best first; equal scores by video_id.

    Attributes:
        video_ids: Q lists of at most k ids.
        scores: (Q, k) float32, -inf past the end.
        windows: (Q, k) int64, the winning window's place among all windows of all blocks; -1 past the end.
        branch_scores: (Q, k, B) float32, that window's unweighted branch maxima; -inf past the end.
    """

    video_ids: list[list[str]]
    scores: np.ndarray
    windows: np.ndarray
    branch_scores: np.ndarray


def search(queries: Sequence[tuple[float, Array]], blocks: Iterable[FrameBlock], k: int, mode: str = "exact") -> TopK:
    """Find the k best videos of every query.

    The score of a window is sum_b weight_b * max over its frames of <query_b, frame_b>; a video's is its best window's.

    Args:
        queries: per branch, its weight and (Q, D) unit rows. A tensor's device does the work.
        blocks: windows with their frames, read once; branches in the order of `queries`.
        k: videos per query, may exceed the number of videos.
        mode: `exact` selects candidates with float32 products, `fast` with bfloat16 ones; ids and scores are the same.

    Raises:
        ValueError: k < 1, an unknown mode, NaN or infinite vectors, or dimensions that do not fit.
    """
    if k < 1:
        raise ValueError(f"k={k}; ask for at least one video")
    with full_precision():
        resident = QueryBlocks(queries, mode)
        names = Names()
        best = Answers.none(resident.num_queries, k, len(queries), resident.device)
        for group, norms in resident.groups(blocks, names):
            for rows in resident.slices():
                answers = _candidates(resident.products(group, norms, rows), group, best[rows])
                best[rows] = merge_top_k(side_by_side([best[rows], answers]), k, names.ids, group.repeats)
    return _named(best, names)


class QueryBlocks:
    """Queries on their device, cut into blocks, with the norms that the bound needs."""

    def __init__(self, queries: Sequence[tuple[float, Array]], mode: str):
        if mode not in TYPES:
            raise ValueError(f"unknown mode {mode!r}; one of {', '.join(TYPES)}")
        self._weights = [float(weight) for weight, _ in queries]
        self._rows = [as_tensor(rows_QD).float() for _, rows_QD in queries]
        shapes = [tuple(rows_QD.shape) for rows_QD in self._rows]
        if not shapes or len({shape[0] for shape in shapes}) > 1 or any(len(shape) != 2 for shape in shapes):
            raise ValueError(f"queries of shapes {shapes}: every branch needs one (Q, D) matrix, Q alike")
        if not np.isfinite(self._weights).all():
            raise ValueError(f"branch weights {self._weights} must be finite")
        self._dtype = TYPES[mode]
        self.num_queries, self.device = shapes[0][0], self._rows[0].device
        self._norms = [_measured(rows_QD, self._dtype, "queries") for rows_QD in self._rows]

    def groups(self, blocks: Iterable[FrameBlock], names: Names) -> Iterable[tuple[WindowGroup, list[Norms]]]:
        """The blocks' windows as groups on the queries' device, with each branch's largest norms."""
        dims = [rows_QD.shape[1] for rows_QD in self._rows]
        for group in window_groups(blocks, names, self.device, _GROUP_ROWS):
            found = [rows_RD.shape[1] for rows_RD in group.frames]
            if found != dims:
                raise ValueError(f"frames have branches of {found} features, the queries {dims}")
            yield group, [_measured(rows_RD, self._dtype, "frames").largest() for rows_RD in group.frames]

    def slices(self) -> list[slice]:
        """Rows of each query block."""
        step = _QUERY_BLOCK[self.device.type]
        return [slice(start, start + step) for start in range(0, self.num_queries, step)]

    def products(self, group: WindowGroup, frame_norms: list[Norms], rows: slice) -> Products:
        """Multiply one group with one query block."""
        queries = [(weight, rows_QD[rows]) for weight, rows_QD in zip(self._weights, self._rows, strict=True)]
        norms = [Norms(item.norm[rows], item.rounding[rows]) for item in self._norms]
        return Products(group, frame_norms, queries, norms, self._dtype)

    def score_windows(self, group: WindowGroup, query_P: torch.Tensor, window_P: torch.Tensor) -> torch.Tensor:
        """The routine's scores of some pairs of a query and a window of the group, without products: (P,)."""
        maxima = [
            window_dots(rows_RD, offsets, rows_QD, query_P, window_P).amax(1)
            for rows_RD, offsets, rows_QD in zip(group.frames, group.offsets, self._rows, strict=True)
        ]
        return fuse(self._weights, maxima)


def _measured(rows_ND: torch.Tensor, dtype: torch.dtype, what: str) -> Norms:
    try:
        return measure(rows_ND, dtype)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _candidates(products: Products, group: WindowGroup, best: Answers) -> Answers:
    """Every window of the group that may be some query's answer, scored."""
    k = best.scores_QK.shape[1]
    reached_Q = best.scores_QK[:, -1] - products.slack_Q
    if not reached_Q.isfinite().all():
        reached_Q = reached_Q.maximum(_kth_video(products.scores_WQ, group, k) - 2 * products.slack_Q)
    pairs = products.score(products.scores_WQ >= reached_Q)
    return _by_query(pairs, group, len(reached_Q))


def _kth_video(scores_WQ: torch.Tensor, group: WindowGroup, k: int) -> torch.Tensor:
    """The k-th best video's product of each query, (Q,); -inf where the group has fewer videos."""
    if group.repeats:
        known, place_W = group.videos_W.unique(return_inverse=True)
        nothing_VQ = scores_WQ.new_full((len(known), scores_WQ.shape[1]), -torch.inf)
        scores_WQ = nothing_VQ.scatter_reduce_(0, place_W[:, None].expand_as(scores_WQ), scores_WQ, "amax")
    if len(scores_WQ) < k:
        return scores_WQ.new_full((scores_WQ.shape[1],), -torch.inf)
    return scores_WQ.T.topk(k, dim=1).values[:, -1]


def _by_query(pairs: Pairs, group: WindowGroup, num_queries: int) -> Answers:
    """Lay scored pairs, sorted by query, out as places of each query."""
    counts_Q = torch.bincount(pairs.query_P, minlength=num_queries)
    num_places = int(counts_Q.max()) if num_queries else 0
    answers = Answers.none(num_queries, num_places, pairs.branch_scores_PB.shape[1], pairs.score_P.device)
    first_Q = counts_Q.cumsum(0) - counts_Q
    place_P = torch.arange(len(pairs.query_P), device=counts_Q.device) - first_Q[pairs.query_P]
    where = (pairs.query_P, place_P)
    answers.scores_QK[where] = pairs.score_P
    answers.videos_QK[where] = group.videos_W[pairs.window_P]
    answers.windows_QK[where] = group.windows_W[pairs.window_P]
    answers.branch_scores_QKB[where] = pairs.branch_scores_PB
    return answers


def _named(best: Answers, names: Names) -> TopK:
    videos = best.videos_QK.tolist()
    return TopK(
        video_ids=[[names.ids[video] for video in row if video >= 0] for row in videos],
        scores=best.scores_QK.cpu().numpy(),
        windows=best.windows_QK.cpu().numpy(),
        branch_scores=best.branch_scores_QKB.cpu().numpy(),
    )

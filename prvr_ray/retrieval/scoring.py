"""Exact top-k videos for many queries: the queries stay in memory while blocks of windows stream past them.

`search` is the whole interface; `Search` does the same for blocks that arrive a few at a time. Neither ever holds the
(queries, videos) matrix of the corpus, only the scores of one group of windows for one block of queries, and k answers
per query.

Shape suffixes: Q queries, W windows, P pairs of a query and a window, K places, D features, B branches.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prvr_ray.retrieval.blocks import Array, FrameBlock, Names, WindowGroup, as_tensor, window_groups
from prvr_ray.retrieval.bounds import measure
from prvr_ray.retrieval.buffers import memory_of
from prvr_ray.retrieval.matmul import full_precision, product_type
from prvr_ray.retrieval.products import BranchQueries, FusedProducts, Pairs, Products, num_maxima
from prvr_ray.retrieval.topk import Answers, merge_into

__all__ = ["FrameBlock", "QueryBlocks", "TopK", "search"]

_QUERY_BLOCK = {"cpu": 2048, "cuda": 16_384}
# The most maxima that one branch keeps for a group and a query block: 0.5 GB and 4 GB in float32.
_MAXIMA = {"cpu": 1 << 27, "cuda": 1 << 30}
# Pairs of a query and a window that are scored at a time, if each query keeps k: some 100 bytes each while they are.
_PAIRS = {"cpu": 1 << 22, "cuda": 1 << 25}
_GROUP_ROWS = 1 << 18  # rows of the first branch in one group: 200 MB of float16 at 384 features


@dataclass(frozen=True, eq=False)
class TopK:
    """The answers to Q queries, best first; equal scores by video_id.

    Attributes:
        video_ids: Q lists of at most k ids.
        scores: (Q, k) float32; -inf where a query has fewer than k answers.
        windows: (Q, k) int64, the winning window's index among all windows of all blocks; -1 where there is no answer.
        branch_scores: (Q, k, B) float32, that window's unweighted branch maxima; NaN where there is no answer.
    """

    video_ids: list[list[str]]
    scores: np.ndarray
    windows: np.ndarray
    branch_scores: np.ndarray


def search(queries: Sequence[tuple[float, Array]], blocks: Iterable[FrameBlock], k: int, mode: str = "exact") -> TopK:
    """Find the k best videos of every query.

    The score of a window is sum_b weight_b * max over its frames of <query_b, frame_b>; a video's is its best window's.

    Args:
        queries: per branch, its weight and (Q, D) unit rows. The search runs on the device of these tensors.
        blocks: windows with their frames, read once; branches in the order of `queries`.
        k: videos per query; it may exceed the number of videos.
        mode: `exact` selects candidates with float32 products, `fast` with bfloat16 ones where the device has
            instructions for them; ids and scores are the same.

    Raises:
        ValueError: k < 1, an unknown mode, NaN or infinite vectors, or dimensions that do not match.
    """
    running = Search(queries, k, mode)
    running.add(blocks)
    return running.top_k()


class Search:
    """A search in progress: the same as `search`, for blocks that arrive a few at a time.

    Attributes:
        best: the k best of all blocks so far, with their branch scores. A video's ordinal is its index in `names`; a
            window's ordinal is its number in order of arrival.
        num_windows: the number of windows searched so far.
    """

    def __init__(self, queries: Sequence[tuple[float, Array]], k: int, mode: str = "exact"):
        """Start a search; the arguments are those of `search`."""
        if k < 1:
            raise ValueError(f"k={k}; ask for at least one video")
        self._weights = [float(weight) for weight, _ in queries]
        if not torch.tensor(self._weights, dtype=torch.float32).isfinite().all():
            raise ValueError(f"branch weights {self._weights} must be finite in float32")
        self._names, self.num_windows = Names(), 0
        with full_precision():
            self._queries = QueryBlocks([rows_QD for _, rows_QD in queries], mode)
            num_queries, device = self._queries.num_queries, self._queries.device
            self.best = Answers.none(num_queries, k, len(queries), device)

    @property
    def names(self) -> list[str]:
        """Video ordinal -> video_id."""
        return self._names.ids

    def add(self, blocks: Iterable[FrameBlock]) -> None:
        """Search more blocks."""
        with full_precision():
            for group in self._queries.groups(blocks, self._names, self.num_windows):
                self.num_windows += len(group)
                for rows, products in self._queries.products(group, self.names, self.best.scores_QK.shape[1]):
                    self._merge(products.fused(self._weights), group, self.best[rows])

    def _merge(self, products: FusedProducts, group: WindowGroup, best: Answers) -> None:
        """Merge one group's windows into the best so far, in place.

        A window's exact score lies within m of its product s (`prvr_ray.retrieval.bounds`). So at least k videos of the
        group score no less than the k-th largest s - m, and a window whose s + m lies below that, or below the k-th
        best score so far, cannot be an answer. Only the other windows are scored exactly: 4.0 % of all pairs in `exact`
        and 5.3 % in `fast`, at k = 100 of 2,500 videos.
        """
        num_queries, k = best.scores_QK.shape
        promised_Q = _kth_video(products.at_least(), group, k)
        # The first group finds no best score so far (-inf), so the lower bounds alone have to close its windows.
        open_WQ = products.may_reach(best.scores_QK[:, -1].maximum(promised_Q))
        answers = _by_query(products.score(open_WQ), group, num_queries)
        merge_into(best, answers, self.names, repeats=group.repeats_within or group.repeats_earlier)

    def top_k(self) -> TopK:
        """The answers so far."""
        best, name = self.best, self.names.__getitem__
        lengths = (best.videos_QK >= 0).sum(1).tolist()
        rows = zip(best.videos_QK.tolist(), lengths, strict=True)
        return TopK(
            video_ids=[list(map(name, row[:length])) for row, length in rows],
            scores=best.scores_QK.cpu().numpy(),
            windows=best.windows_QK.cpu().numpy(),
            branch_scores=best.extras_QKE.cpu().numpy(),
        )


class QueryBlocks:
    """Queries on their device, cut into blocks, with the norms that the error bound needs."""

    def __init__(self, queries: Sequence[Array], mode: str):
        """Check the queries and measure their norms.

        Args:
            queries: per branch, (Q, D) unit rows.
            mode: as for `search`.
        """
        branches = [as_tensor(rows_QD).float() for rows_QD in queries]
        shapes = [tuple(rows_QD.shape) for rows_QD in branches]
        if not shapes or len({shape[0] for shape in shapes}) > 1 or any(len(shape) != 2 for shape in shapes):
            raise ValueError(f"queries of shapes {shapes}: every branch needs one (Q, D) matrix with the same Q")
        self.num_queries, self.device = shapes[0][0], branches[0].device
        self._dtype = product_type(mode, self.device)
        self._shared = memory_of(self, "all branches", self.device)
        self.branches = [self._branch(number, rows_QD) for number, rows_QD in enumerate(branches)]

    def _branch(self, number: int, rows_QD: torch.Tensor) -> BranchQueries:
        norms = measure(rows_QD, rows_QD.to(self._dtype), self._shared)
        if (row := norms.first_broken()) is not None:
            raise ValueError(f"the vector of query {row} holds NaN or infinity")
        return BranchQueries(rows_QD, norms, memory_of(self, f"branch {number}", self.device))

    def groups(self, blocks: Iterable[FrameBlock], names: Names, first_window: int = 0) -> Iterator[WindowGroup]:
        """Yield the blocks' windows as groups on the queries' device."""
        dims = [branch.rows_QD.shape[1] for branch in self.branches]
        for group in window_groups(blocks, names, self.device, _GROUP_ROWS, first_window):
            found = [branch.stored_RD.shape[1] for branch in group.branches]
            if found != dims:
                raise ValueError(f"the branches of the frames have {found} features, those of the queries {dims}")
            yield group

    def products(self, group: WindowGroup, names: Sequence[str], k: int = 1) -> Iterator[tuple[slice, Products]]:
        """Multiply one group by each query block: the block's rows and its products, valid until the next are made.

        All query blocks reuse the same buffers. A query block is shorter where a group has so many chunks and windows
        that their maxima would exceed `_MAXIMA`, or where k windows of each query would exceed `_PAIRS`.
        """
        kind, most = self.device.type, max(num_maxima(branch) for branch in group.branches)
        step = max(1, min(_QUERY_BLOCK[kind], _MAXIMA[kind] // most, _PAIRS[kind] // max(1, min(k, len(group)))))
        for start in range(0, self.num_queries, step):
            rows = slice(start, start + step)
            products = Products(group, [branch[rows] for branch in self.branches], self._shared, self._dtype)
            if (window := products.broken_window()) is not None:
                raise ValueError(
                    f"frames of video {names[int(group.videos_W[window])]!r} hold NaN or infinity, or values so large "
                    "that their norm overflows float32"
                )
            yield rows, products


def _kth_video(scores_WQ: torch.Tensor, group: WindowGroup, k: int) -> torch.Tensor:
    """Return the k-th best video's value for each query, (Q,); -inf where the group has fewer than k videos."""
    _, scores_VQ = best_of_videos(scores_WQ, group)
    if len(scores_VQ) < k:
        return scores_VQ.new_full((scores_VQ.shape[1],), -torch.inf)
    return scores_VQ.T.topk(k, dim=1).values[:, -1]


def best_of_videos(scores_WQ: torch.Tensor, group: WindowGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the group's videos, (V,) ordinals, and the score of each video's best window, (V, Q).

    The ordinals ascend where a video has several windows in the group; otherwise they are in the order of the windows.
    """
    if not group.repeats_within:  # the usual case: each window is a video of its own, so nothing has to be reduced
        return group.videos_W, scores_WQ
    videos_V, place_W = group.videos_W.unique(return_inverse=True)
    nothing_VQ = scores_WQ.new_full((len(videos_V), scores_WQ.shape[1]), -torch.inf)
    return videos_V, nothing_VQ.scatter_reduce_(0, place_W[:, None].expand_as(scores_WQ), scores_WQ, "amax")


def _by_query(pairs: Pairs, group: WindowGroup, num_queries: int) -> Answers:
    """Arrange scored pairs, which come sorted by query, as one row of places per query."""
    counts_Q = torch.bincount(pairs.query_P, minlength=num_queries)
    num_places = int(counts_Q.max()) if num_queries else 0
    answers = Answers.none(num_queries, num_places, pairs.branch_scores_PB.shape[1], pairs.score_P.device)
    first_Q = counts_Q.cumsum(0) - counts_Q
    place_P = torch.arange(len(pairs.query_P), device=counts_Q.device) - first_Q[pairs.query_P]
    where = (pairs.query_P, place_P)
    answers.scores_QK[where] = pairs.score_P
    answers.videos_QK[where] = group.videos_W[pairs.window_P]
    answers.windows_QK[where] = group.windows_W[pairs.window_P]
    answers.extras_QKE[where] = pairs.branch_scores_PB
    return answers

"""Ranks of the relevant videos by counting: two passes over the blocks, no (queries, videos) matrix.

The first pass scores the relevant videos, the second counts the irrelevant ones that score at least as high. Scores
are the routine's (`prvr_ray.retrieval.products`): ranks agree with `search`, in both modes.

Shape suffixes: Q queries, W windows, V videos, P pairs, M relevant videos of a query at most, S split videos.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from prvr_ray.retrieval.blocks import Array, FrameBlock, Names, WindowGroup
from prvr_ray.retrieval.metrics import ranks_from_counts
from prvr_ray.retrieval.products import Products, full_precision
from prvr_ray.retrieval.scoring import QueryBlocks


def rank_by_counting(
    queries: Sequence[tuple[float, Array]],
    blocks: Iterable[FrameBlock],
    relevant: Sequence[Sequence[str]],
    mode: str = "exact",
) -> list[np.ndarray]:
    """Rank the relevant videos of every query among the videos of the blocks.

    Args:
        queries: per branch, weight and (Q, D) unit rows, as for `search`.
        blocks: read twice; a list, or an object whose iterator starts anew.
        relevant: per query, ids of its relevant videos. One that no block holds ranks behind all that are there.
        mode: of the products that select, as for `search`; the ranks are the same.

    Returns:
        Per query, the sorted ranks (from 1) of its relevant videos; ties count against them. As
        `prvr_ray.retrieval.metrics.ranks`.

    Raises:
        ValueError: blocks that can be read once only, another number of queries, or what `search` refuses.
    """
    if iter(blocks) is blocks:
        raise ValueError("ranks need two passes: give a list of blocks, not an iterator")
    with full_precision():
        resident = QueryBlocks(queries, mode)
        if len(relevant) != resident.num_queries:
            raise ValueError(f"{resident.num_queries} queries, relevant videos of {len(relevant)}")
        wanted = _Relevant(relevant, resident.device)
        names, split = Names(), _SplitVideos()
        for group, _ in resident.groups(blocks, names):
            split.see(group)
            wanted.score(resident, group, names)
        counts_QM = _count(resident, blocks, names, wanted, split)
    return [
        ranks_from_counts(counts_M[: len(videos)].cpu().numpy())
        for counts_M, videos in zip(counts_QM, wanted.videos, strict=True)
    ]


class _Relevant:
    """The relevant videos of every query, and their scores: -inf until a block holds them, inf where there is none."""

    def __init__(self, relevant: Sequence[Sequence[str]], device: torch.device):
        self.videos = [sorted(set(videos)) for videos in relevant]
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for query, videos in enumerate(self.videos):
            for place, video_id in enumerate(videos):
                self._places[video_id].append((query, place))
        num_places = max(map(len, self.videos), default=0)
        lengths_Q = torch.tensor([len(videos) for videos in self.videos], device=device)
        is_there_QM = torch.arange(num_places, device=device) < lengths_Q[:, None]
        self.scores_QM = torch.full(is_there_QM.shape, torch.inf, device=device).masked_fill_(is_there_QM, -torch.inf)

    def pairs(self, group: WindowGroup, names: Names) -> torch.Tensor:
        """(3, P): query, place among its relevant videos, and window, for every relevant window of the group."""
        found = [
            (query, place, window)
            for window, video in enumerate(group.videos_W.tolist())
            for query, place in self._places.get(names.ids[video], ())
        ]
        return torch.tensor(sorted(found), dtype=torch.int64, device=self.scores_QM.device).reshape(-1, 3).T

    def score(self, resident: QueryBlocks, group: WindowGroup, names: Names) -> None:
        """Take the best of the group's windows into the scores."""
        query_P, place_P, window_P = self.pairs(group, names)
        scores_P = resident.score_windows(group, query_P, window_P)
        flat_P = query_P * self.scores_QM.shape[1] + place_P
        self.scores_QM.view(-1).scatter_reduce_(0, flat_P, scores_P, "amax")


class _SplitVideos:
    """Videos whose windows lie in several groups: their best score is known only at the end, so they are held."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._split: set[int] = set()

    def see(self, group: WindowGroup) -> None:
        videos = set(group.videos_W.tolist())
        self._split |= self._seen & videos
        self._seen |= videos

    def ordinals(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(sorted(self._split), dtype=torch.int64, device=device)


def _count(
    resident: QueryBlocks, blocks: Iterable[FrameBlock], names: Names, wanted: _Relevant, split: _SplitVideos
) -> torch.Tensor:
    """For each query and relevant video, the irrelevant videos that score at least as high: (Q, M) int64."""
    counts_QM = torch.zeros_like(wanted.scores_QM, dtype=torch.int64)
    split_S = split.ordinals(resident.device)
    held_SQ = wanted.scores_QM.new_full((len(split_S), resident.num_queries), -torch.inf)
    for group, norms in resident.groups(blocks, names):
        query_P, _, window_P = wanted.pairs(group, names)
        videos_V, place_W = group.videos_W.unique(return_inverse=True)
        is_split_V = torch.isin(videos_V, split_S)
        for rows in resident.slices():
            levels_QM = wanted.scores_QM[rows]
            scores_WQ = _decided(resident.products(group, norms, rows), levels_QM)
            is_here_P = (query_P >= rows.start) & (query_P < rows.stop)
            scores_WQ[window_P[is_here_P], query_P[is_here_P] - rows.start] = torch.nan  # relevant: never counted
            nothing_VQ = scores_WQ.new_full((len(videos_V), scores_WQ.shape[1]), -torch.inf)
            best_VQ = nothing_VQ.scatter_reduce_(0, place_W[:, None].expand_as(scores_WQ), scores_WQ, "amax")
            counts_QM[rows] += _num_reaching(best_VQ[~is_split_V], levels_QM)
            held_S = torch.searchsorted(split_S, videos_V[is_split_V])
            held_SQ[held_S, rows] = held_SQ[held_S, rows].maximum(best_VQ[is_split_V])
    return counts_QM + _num_reaching(held_SQ, wanted.scores_QM)


def _decided(products: Products, levels_QM: torch.Tensor) -> torch.Tensor:
    """Scores of windows that compare with every level as the routine's do: where the bound leaves it open, those."""
    scores_WQ = products.scores_WQ
    is_open_WQ = torch.zeros_like(scores_WQ, dtype=torch.bool)
    for level_Q in levels_QM.unbind(1):
        is_open_WQ |= (scores_WQ - level_Q).abs() <= products.slack_Q
    pairs = products.score(is_open_WQ)
    scores_WQ[pairs.window_P, pairs.query_P] = pairs.score_P
    return scores_WQ


def _num_reaching(scores_VQ: torch.Tensor, levels_QM: torch.Tensor) -> torch.Tensor:
    """How many videos reach each level: (Q, M). NaN reaches none."""
    columns = [(scores_VQ >= level_Q).sum(0) for level_Q in levels_QM.unbind(1)]
    return torch.stack(columns, dim=1) if columns else torch.zeros_like(levels_QM, dtype=torch.int64)

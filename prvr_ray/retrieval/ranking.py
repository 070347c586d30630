"""Ranks the relevant videos by counting: two passes over the blocks, without a (queries, videos) matrix.

The first pass scores the relevant videos; the second counts the irrelevant ones that score at least as high. Scores are
made of exact dot products (`prvr_ray.retrieval.exact_dots`), so ranks agree with `search` in both modes. All weightings
of the branches share one set of products.

Shape suffixes: Q queries, W windows, V videos, P pairs of a query and a relevant window, M the most relevant videos of
a query, S videos whose windows lie in several groups.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from prvr_ray.retrieval.blocks import Array, FrameBlock, Names, WindowGroup
from prvr_ray.retrieval.exact_dots import window_dots
from prvr_ray.retrieval.matmul import full_precision
from prvr_ray.retrieval.metrics import ranks_from_counts
from prvr_ray.retrieval.products import FusedProducts, fuse
from prvr_ray.retrieval.scoring import QueryBlocks, best_of_videos

Weightings = Mapping[str, Sequence[float]]


def rank_by_counting(
    queries: Sequence[Array],
    blocks: Iterable[FrameBlock],
    relevant: Sequence[Sequence[str]],
    weightings: Weightings,
    mode: str = "exact",
) -> dict[str, list[np.ndarray]]:
    """Rank the relevant videos of every query among the videos of the blocks.

    Args:
        queries: per branch, (Q, D) unit rows. Ranking runs on the device of these tensors.
        blocks: read twice: a list, or an object that makes a new iterator each time.
        relevant: per query, ids of its relevant videos. A relevant video that no block holds ranks behind all others.
        weightings: name -> one weight per branch.
        mode: as for `search`; it does not change the ranks.

    Returns:
        Name -> per query, the sorted ranks (from 1) of its relevant videos; ties count against them, as in
        `prvr_ray.retrieval.metrics.ranks`.

    Raises:
        ValueError: blocks that can be read only once, lists in `relevant` that do not match the queries in number, or
            what `search` refuses.
    """
    if iter(blocks) is blocks:
        raise ValueError("ranks need two passes: give a list of blocks, not an iterator")
    with full_precision():
        resident = QueryBlocks(queries, mode)
        if len(relevant) != resident.num_queries:
            raise ValueError(f"{resident.num_queries} queries, but relevant videos of {len(relevant)}")
        wanted = _Relevant(relevant, resident.device)
        counts = {name: _Counts(weights, wanted) for name, weights in weightings.items()}
        names, split = Names(), _SplitVideos()
        for group in resident.groups(blocks, names):
            split.see(group)
            _score_relevant(resident, group, wanted.pairs(group, names), counts.values())
        for item in counts.values():
            item.hold(split.ordinals(resident.device))
        for group in resident.groups(blocks, names):
            pairs_3P = wanted.pairs(group, names)
            for rows, products in resident.products(group, names.ids):
                for item in counts.values():
                    item.add(products.fused(item.weights), group, pairs_3P, rows)
        return {name: wanted.ranks(item.total()) for name, item in counts.items()}


class _Relevant:
    """The relevant videos of each query, numbered within the query in the order of their ids."""

    def __init__(self, relevant: Sequence[Sequence[str]], device: torch.device):
        self._videos = [sorted(set(videos)) for videos in relevant]
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for query, videos in enumerate(self._videos):
            for place, video_id in enumerate(videos):
                self._places[video_id].append((query, place))
        lengths_Q = torch.tensor([len(videos) for videos in self._videos], dtype=torch.int64, device=device)
        num_places = max(map(len, self._videos), default=0)
        self.is_there_QM = torch.arange(num_places, device=device) < lengths_Q[:, None]

    def pairs(self, group: WindowGroup, names: Names) -> torch.Tensor:
        """Return (3, P): query, number of the video among its relevant ones, and window, per relevant window here."""
        found = [
            (query, place, window)
            for window, video in enumerate(group.videos_W.tolist())
            for query, place in self._places.get(names.ids[video], ())
        ]
        return torch.tensor(found, dtype=torch.int64, device=self.is_there_QM.device).reshape(-1, 3).T

    def ranks(self, counts_QM: torch.Tensor) -> list[np.ndarray]:
        counts = counts_QM.cpu().numpy()
        return [ranks_from_counts(row[: len(videos)]) for row, videos in zip(counts, self._videos, strict=True)]


def _score_relevant(
    resident: QueryBlocks, group: WindowGroup, pairs_3P: torch.Tensor, counts: Iterable["_Counts"]
) -> None:
    query_P, place_P, window_P = pairs_3P
    maxima = [
        window_dots(branch, queries.rows_QD, query_P, window_P).amax(1)
        for branch, queries in zip(group.branches, resident.branches, strict=True)
    ]
    for item in counts:
        item.see(query_P, place_P, fuse(item.weights, maxima))


class _Counts:
    """One weighting's scores of the relevant videos (the levels), and how many irrelevant videos reach each of them."""

    def __init__(self, weights: Sequence[float], wanted: _Relevant):
        self.weights = [float(weight) for weight in weights]
        # A query with fewer than M relevant videos has levels of inf, which no score reaches. A video that no block
        # holds keeps -inf, which every score reaches.
        nothing_QM = wanted.is_there_QM.float()
        self._levels_QM = nothing_QM.fill_(torch.inf).masked_fill_(wanted.is_there_QM, -torch.inf)
        self._counts_QM = torch.zeros_like(self._levels_QM, dtype=torch.int64)

    def see(self, query_P: torch.Tensor, place_P: torch.Tensor, score_P: torch.Tensor) -> None:
        """Raise the levels to the scores of these relevant windows."""
        flat_P = query_P * self._levels_QM.shape[1] + place_P
        self._levels_QM.view(-1).scatter_reduce_(0, flat_P, score_P, "amax")

    def hold(self, split_S: torch.Tensor) -> None:
        """Set aside the videos whose windows lie in several groups: their best score is known only at the end."""
        self._split_S = split_S
        self._held_SQ = self._levels_QM.new_full((len(split_S), len(self._levels_QM)), -torch.inf)

    def add(self, products: FusedProducts, group: WindowGroup, pairs_3P: torch.Tensor, rows: slice) -> None:
        """Count a group's videos for one query block."""
        levels_QM = self._levels_QM[rows]
        scores_WQ = _decided(products, levels_QM)
        query_P, _, window_P = pairs_3P
        is_here_P = (query_P >= rows.start) & (query_P < rows.stop)
        # NaN reaches no level, so relevant videos are not counted among the irrelevant ones.
        scores_WQ[window_P[is_here_P], query_P[is_here_P] - rows.start] = torch.nan
        videos_V, best_VQ = best_of_videos(scores_WQ, group)
        is_split_V = torch.isin(videos_V, self._split_S)
        self._counts_QM[rows] += _num_reaching(best_VQ[~is_split_V], levels_QM)
        held_S = torch.searchsorted(self._split_S, videos_V[is_split_V])
        self._held_SQ[held_S, rows] = self._held_SQ[held_S, rows].maximum(best_VQ[is_split_V])

    def total(self) -> torch.Tensor:
        """Return how many irrelevant videos reach each level, (Q, M)."""
        return self._counts_QM + _num_reaching(self._held_SQ, self._levels_QM)


class _SplitVideos:
    """Finds the videos whose windows lie in several groups."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._split: set[int] = set()

    def see(self, group: WindowGroup) -> None:
        videos = set(group.videos_W.tolist())
        self._split |= self._seen & videos
        self._seen |= videos

    def ordinals(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(sorted(self._split), dtype=torch.int64, device=device)


def _decided(products: FusedProducts, levels_QM: torch.Tensor) -> torch.Tensor:
    """Return scores (W, Q) that compare with every level as the exact scores do.

    Only scores within the error bound of a level are computed exactly: for the others the product decides.
    """
    scores_WQ = products.scores_WQ
    is_open_WQ = torch.zeros_like(scores_WQ, dtype=torch.bool)
    for level_Q in levels_QM.unbind(1):
        is_open_WQ |= (scores_WQ - level_Q).abs() <= products.slack_WQ
    pairs = products.score(is_open_WQ)
    scores_WQ[pairs.window_P, pairs.query_P] = pairs.score_P
    return scores_WQ


def _num_reaching(scores_VQ: torch.Tensor, levels_QM: torch.Tensor) -> torch.Tensor:
    """Count the videos that reach each level: (Q, M). NaN reaches none."""
    columns = [(scores_VQ >= level_Q).sum(0) for level_Q in levels_QM.unbind(1)]
    return torch.stack(columns, dim=1) if columns else torch.zeros_like(levels_QM, dtype=torch.int64)

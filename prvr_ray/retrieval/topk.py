"""Running top-k by video: the order of answers, and the merge that search and the score job share.

Merging by video and then by k is exact: a video of the final answer is beaten by fewer than k videos overall, so by
fewer than k within any part, with its best window in the part that holds it.

Shape suffixes: Q queries, K places, E extras.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True, eq=False)
class Answers:
    """Candidates of each query, one a place. A place without a candidate has score -inf and ordinals -1.

    Attributes:
        scores_QK: float32.
        videos_QK, windows_QK: int64 ordinals.
        extras_QKE: float64, what travels with an answer: its branch scores, and whatever the caller adds behind them;
            NaN where nothing is known.
    """

    scores_QK: torch.Tensor
    videos_QK: torch.Tensor
    windows_QK: torch.Tensor
    extras_QKE: torch.Tensor

    @classmethod
    def none(cls, num_queries: int, num_places: int, num_extras: int, device: torch.device | str) -> "Answers":
        shape = (num_queries, num_places)
        nothing_QK = torch.full(shape, -1, dtype=torch.int64, device=device)
        return cls(
            torch.full(shape, -torch.inf, device=device),
            nothing_QK,
            nothing_QK.clone(),
            torch.full((*shape, num_extras), torch.nan, dtype=torch.float64, device=device),
        )

    def __getitem__(self, rows: slice | torch.Tensor) -> "Answers":
        return Answers(*(tensor[rows] for tensor in _tensors(self)))

    def __setitem__(self, rows: slice | torch.Tensor, other: "Answers") -> None:
        for mine, theirs in zip(_tensors(self), _tensors(other), strict=True):
            mine[rows] = theirs

    def take(self, order_QK: torch.Tensor) -> "Answers":
        """The places of each query in another order, or some of them."""
        return Answers(*(_take(tensor, order_QK) for tensor in _tensors(self)))

    def first(self, k: int) -> "Answers":
        return Answers(*(tensor[:, :k] for tensor in _tensors(self)))


def side_by_side(parts: Sequence[Answers]) -> Answers:
    """All places of several answers to the same queries."""
    return Answers(*(torch.cat(column, dim=1) for column in zip(*map(_tensors, parts), strict=True)))


def merge_top_k(answers: Answers, k: int, names: Sequence[str], repeats: bool) -> Answers:
    """Keep the k best videos of each query, each with its best window.

    Args:
        answers: any number of places, in any order.
        k: places of the result; missing ones are empty.
        names: video ordinal -> video_id: equal scores go by video_id, then by window.
        repeats: whether a query may have several windows of one video among its places.
    """
    answers = _ordered(answers, names)
    if repeats:
        answers = _without_repeats(answers)
    missing = k - answers.scores_QK.shape[1]
    if missing > 0:
        num_queries, _, num_extras = answers.extras_QKE.shape
        empty = Answers.none(num_queries, missing, num_extras, answers.scores_QK.device)
        answers = side_by_side([answers, empty])
    return answers.first(k)


def _ordered(answers: Answers, names: Sequence[str]) -> Answers:
    answers = answers.take(_descending(answers.scores_QK))
    scores_QK = answers.scores_QK
    is_tied_Q = ((scores_QK[:, 1:] == scores_QK[:, :-1]) & scores_QK[:, 1:].isfinite()).any(1)
    rows = is_tied_Q.nonzero().flatten()
    if len(rows):
        answers[rows] = _by_name(answers[rows], names)
    return answers


def _by_name(answers: Answers, names: Sequence[str]) -> Answers:
    """Order by score, then video_id, then window, with one stable sort each, the last key first."""
    known, place_QK = answers.videos_QK.unique(return_inverse=True)
    ids = [names[video] if video >= 0 else "" for video in known.tolist()]
    by_id = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__), device=known.device)
    rank_QK = torch.empty_like(known).scatter_(0, by_id, torch.arange(len(ids), device=known.device))[place_QK]
    order_QK = answers.windows_QK.argsort(dim=1, stable=True)
    order_QK = order_QK.gather(1, rank_QK.gather(1, order_QK).argsort(dim=1, stable=True))
    return answers.take(order_QK.gather(1, _descending(answers.scores_QK.gather(1, order_QK))))


def _without_repeats(answers: Answers) -> Answers:
    """Empty all places of a video but its first, and move empty places to the end."""
    videos_QK, order_QK = answers.videos_QK.sort(dim=1, stable=True)
    is_repeat_QK = torch.zeros_like(videos_QK, dtype=torch.bool)
    is_repeat_QK[:, 1:] = (videos_QK[:, 1:] == videos_QK[:, :-1]) & (videos_QK[:, 1:] >= 0)
    is_repeat_QK = torch.zeros_like(is_repeat_QK).scatter_(1, order_QK, is_repeat_QK)
    kept = Answers(
        answers.scores_QK.masked_fill(is_repeat_QK, -torch.inf),
        answers.videos_QK.masked_fill(is_repeat_QK, -1),
        answers.windows_QK.masked_fill(is_repeat_QK, -1),
        answers.extras_QKE.masked_fill(is_repeat_QK[..., None], torch.nan),
    )
    return kept.take(_descending(kept.scores_QK))


def _descending(scores_QK: torch.Tensor) -> torch.Tensor:
    return scores_QK.sort(dim=1, descending=True, stable=True).indices


def _take(tensor: torch.Tensor, order_QK: torch.Tensor) -> torch.Tensor:
    if tensor.ndim == 2:
        return tensor.gather(1, order_QK)
    return tensor.gather(1, order_QK[..., None].expand(-1, -1, tensor.shape[2]))


def _tensors(answers: Answers) -> list[torch.Tensor]:
    return [getattr(answers, item.name) for item in fields(answers)]

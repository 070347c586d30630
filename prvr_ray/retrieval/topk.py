"""Running top-k by video: the order of answers, and the merge that `search` and the score job share.

Merging partial answers by video, then keeping k, is exact. Fewer than k videos beat a video of the final answer
overall, so fewer than k beat it in the part that holds its best window, and that part's k best include it.

Shape suffixes: Q queries, K places, E extras.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

_PLACES_AT_ONCE = 1 << 22  # places merged at a time: 117 MB with two extras, of which a merge makes about four copies


@dataclass(frozen=True, eq=False)
class Answers:
    """Candidates of each query, one per place. An empty place has score -inf and ordinals -1.

    Attributes:
        scores_QK: float32.
        videos_QK, windows_QK: int64 ordinals.
        extras_QKE: values kept with each answer, such as its branch scores; NaN where unknown. Any float dtype.
    """

    scores_QK: torch.Tensor
    videos_QK: torch.Tensor
    windows_QK: torch.Tensor
    extras_QKE: torch.Tensor

    @classmethod
    def none(
        cls,
        num_queries: int,
        num_places: int,
        num_extras: int,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
    ) -> "Answers":
        """Make empty places. dtype: of the extras."""
        shape = (num_queries, num_places)
        nothing_QK = torch.full(shape, -1, dtype=torch.int64, device=device)
        return cls(
            torch.full(shape, -torch.inf, device=device),
            nothing_QK,
            nothing_QK.clone(),
            torch.full((*shape, num_extras), torch.nan, dtype=dtype, device=device),
        )

    def __getitem__(self, rows: slice | torch.Tensor) -> "Answers":
        return Answers(*(tensor[rows] for tensor in _tensors(self)))

    def __setitem__(self, rows: slice | torch.Tensor, other: "Answers") -> None:
        for mine, theirs in zip(_tensors(self), _tensors(other), strict=True):
            mine[rows] = theirs

    def take(self, order_QK: torch.Tensor) -> "Answers":
        """Return the given places of each query, in the given order."""
        return Answers(*(_take_places(tensor, order_QK) for tensor in _tensors(self)))

    def first(self, k: int) -> "Answers":
        return Answers(*(tensor[:, :k] for tensor in _tensors(self)))


def side_by_side(parts: Sequence[Answers]) -> Answers:
    """Join the places of several answers to the same queries."""
    return Answers(*(torch.cat(column, dim=1) for column in zip(*map(_tensors, parts), strict=True)))


def merge_into(best: Answers, answers: Answers, names: Sequence[str], repeats: bool) -> None:
    """Merge more answers to the same queries into the best so far, in place.

    Only some queries are merged at a time: merging copies its places about four times, and at k = 10,000 copies of all
    places would need more memory than the answers themselves.

    Args:
        best: k places per query, sorted.
        answers, names, repeats: as for `merge_top_k`.
    """
    num_queries, k = best.scores_QK.shape
    step = max(1, _PLACES_AT_ONCE // (k + answers.scores_QK.shape[1]))
    for start in range(0, num_queries, step):
        rows = slice(start, start + step)
        best[rows] = merge_top_k(side_by_side([best[rows], answers[rows]]), k, names, repeats)


def merge_top_k(answers: Answers, k: int, names: Sequence[str], repeats: bool) -> Answers:
    """Keep the k best videos of each query, each with its best window.

    Args:
        answers: any number of places, in any order.
        k: places of the result; those without a video are empty.
        names: video ordinal -> video_id. Answers of equal score are ordered by video_id, then by window.
        repeats: whether a query may have several windows of one video among its places.
    """
    answers = _ordered(answers, names)
    if repeats:
        answers = _without_repeats(answers)
    missing = k - answers.scores_QK.shape[1]
    if missing > 0:
        num_queries, _, num_extras = answers.extras_QKE.shape
        empty = Answers.none(num_queries, missing, num_extras, answers.scores_QK.device, answers.extras_QKE.dtype)
        answers = side_by_side([answers, empty])
    return answers.first(k)


def _ordered(answers: Answers, names: Sequence[str]) -> Answers:
    answers = answers.take(_descending(answers.scores_QK))
    scores_QK = answers.scores_QK
    # Few queries have ties, and only theirs need the strings.
    is_tied_Q = ((scores_QK[:, 1:] == scores_QK[:, :-1]) & scores_QK[:, 1:].isfinite()).any(1)
    rows = is_tied_Q.nonzero().flatten()
    if len(rows):
        answers[rows] = _by_name(answers[rows], names)
    return answers


def _by_name(answers: Answers, names: Sequence[str]) -> Answers:
    """Order by score, then video_id, then window: one stable sort per key, beginning with the last key."""
    known, place_QK = answers.videos_QK.unique(return_inverse=True)
    ids = [names[video] if video >= 0 else "" for video in known.tolist()]
    by_id = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__), device=known.device)
    rank_QK = torch.empty_like(known).scatter_(0, by_id, torch.arange(len(ids), device=known.device))[place_QK]
    order_QK = answers.windows_QK.argsort(dim=1, stable=True)
    order_QK = order_QK.gather(1, rank_QK.gather(1, order_QK).argsort(dim=1, stable=True))
    return answers.take(order_QK.gather(1, _descending(answers.scores_QK.gather(1, order_QK))))


def _without_repeats(answers: Answers) -> Answers:
    """Empty all places of a video except its first, and move empty places to the end."""
    # The sort is stable and the places come best first, so the first of equal videos is the video's best window.
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


def _take_places(tensor: torch.Tensor, order_QK: torch.Tensor) -> torch.Tensor:
    if tensor.ndim == 2:
        return tensor.gather(1, order_QK)
    return tensor.gather(1, order_QK[..., None].expand(-1, -1, tensor.shape[2]))


def _tensors(answers: Answers) -> list[torch.Tensor]:
    return [getattr(answers, item.name) for item in fields(answers)]

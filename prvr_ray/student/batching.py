"""From features to batches: sampling and alignment of frames, which videos a step sees, and its tensors.

A batch is a pure function of (seed, epoch, step), whatever the number of workers; each worker gets the frames and
queries of its own videos. Rows are ragged: nothing is padded.

Shapes: N queries, V videos, R rows, D features; a small v or n: of this worker only.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from prvr_ray.student.cache import FeatureCache, Ragged
from prvr_ray.student.model import Layout
from prvr_ray.student.scores import OwnFrames

NORM_EPSILON = 1e-5  # METHOD: x / (|x| + 1e-5)

Item = TypeVar("Item")
Result = TypeVar("Result")


def sample_uniform(x_nD: np.ndarray, limit: int) -> np.ndarray:
    """Shorten a sequence to at most `limit` rows by averaging neighbours (METHOD: "Data preparation").

    Args:
        x_nD: (n, D), array or tensor.

    Returns:
        x itself if n <= limit, else (limit, D) float32.
    """
    x_nD = np.asarray(x_nD)
    return x_nD if len(x_nD) <= limit else resample(x_nD, limit)


def resample(x_nD: np.ndarray, length: int) -> np.ndarray:
    """Average a sequence into `length` equal parts; a part that holds no row repeats the row where it starts.

    Returns:
        (length, D) float32; (0, D) if x is empty.
    """
    x_nD = np.asarray(x_nD, dtype=np.float32)
    if not len(x_nD):
        return x_nD
    edges = np.round(np.arange(length + 1) / length * len(x_nD)).astype(np.int64).clip(0, len(x_nD) - 1)
    sums_lD = np.add.reduceat(x_nD, edges, axis=0)[:-1]
    return sums_lD / np.diff(edges).clip(1)[:, None].astype(np.float32)


def cut_tokens(tokens_TD: np.ndarray, limit: int, keep_last: bool = False) -> np.ndarray:
    """Cut a query to the tokens that the student takes.

    Args:
        limit: tokens at most.
        keep_last: where there are more, keep the first limit - 1 and the last one. In a causal text tower a state knows
            only the words up to it, and the last, of the end of the text, the whole sentence. Else the first ones.
    """
    if len(tokens_TD) <= limit or not keep_last:
        return tokens_TD[:limit]
    return np.concatenate([tokens_TD[: limit - 1], tokens_TD[-1:]])


def normalize(x_nD: np.ndarray) -> np.ndarray:
    """Scale rows to unit length as the student expects them; float32."""
    x_nD = np.asarray(x_nD, dtype=np.float32)
    return x_nD / (np.linalg.norm(x_nD, axis=-1, keepdims=True) + NORM_EPSILON)


def align(
    student_nD: np.ndarray, teacher_mD: np.ndarray, limit: int, faithful: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Bring a video's student and teacher frames to one length for distillation.

    Args:
        limit: frames that the student sees at most.
        faithful: as published, the student's stored frames are shortened to the number of the teacher's stored
            frames and then to the limit, never lengthened; the teacher's are shortened to the limit, and of those the
            first as many count as the student has, for its mask decides. Else the teacher's are resampled to the
            student's number, so that the student sees a video the same way in training and afterwards.

    Returns:
        Student frames, normalised, and teacher frames, raw; the same number of each.
    """
    if faithful:
        student_FD = sample_uniform(sample_uniform(student_nD, len(teacher_mD)), limit)
        return normalize(student_FD), sample_uniform(teacher_mD, limit)[: len(student_FD)]
    student_FD = sample_uniform(student_nD, limit)
    teacher_FD = sample_uniform(teacher_mD, limit)
    if len(student_FD) != len(teacher_FD):
        teacher_FD = resample(teacher_mD, len(student_FD))
    return normalize(student_FD), teacher_FD


def draw_batches(videos: np.ndarray, videos_per_batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The videos of every step of an epoch: all of them in random order; the last batch may be smaller."""
    shuffled = np.random.default_rng([seed, epoch]).permutation(videos)
    return [shuffled[start : start + videos_per_batch] for start in range(0, len(shuffled), videos_per_batch)]


@dataclass(frozen=True)
class Batch:
    """What one worker needs of a global batch of V videos and N queries.

    owner_of_video_V, owner_of_query_N: the worker that encodes each. video_of_query_N: column of each query's video.
    relevant_NV: every relevant video of each query; None where each has one, its own.
    frames_RD, teacher_frames_RD, frame_layout: this worker's videos. tokens_RD, token_layout: its queries.
    teacher_queries_ND: of all queries. own: the frames of each query's video, where they are here.
    """

    owner_of_video_V: np.ndarray
    owner_of_query_N: np.ndarray
    video_of_query_N: Tensor
    relevant_NV: Tensor | None
    frames_RD: Tensor
    teacher_frames_RD: Tensor
    frame_layout: Layout
    tokens_RD: Tensor
    token_layout: Layout
    teacher_queries_ND: Tensor
    own: OwnFrames


@dataclass(frozen=True)
class BatchReader:
    """Makes one worker's batches. `device` and `dtype` say where and as what tensors are computed with."""

    cache: FeatureCache
    sort_by_captions: bool = True
    rank: int = 0
    world_size: int = 1
    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32

    def read(self, videos_V: np.ndarray) -> Batch:
        """The batch of these videos, with all their queries, on the device."""
        return self.place(self.load(videos_V))

    def load(self, videos_V: np.ndarray) -> Batch:
        """The same in memory, as it is stored. Made to be called ahead, in a thread."""
        _, counts_V = self.cache.queries_of(videos_V)
        if self.sort_by_captions:
            videos_V = videos_V[np.argsort(-counts_V, kind="stable")]
        queries_N, counts_V = self.cache.queries_of(videos_V)
        video_of_query_N = np.repeat(np.arange(len(videos_V)), counts_V)
        owner_V = np.arange(len(videos_V)) % self.world_size
        owner_N = owner_V[video_of_query_N]
        mine_v = videos_V[owner_V == self.rank]
        local_N = np.where(owner_N == self.rank, video_of_query_N // self.world_size, -1)

        frames_RD, frame_layout = _take(self.cache.frames, mine_v)
        tokens_RD, token_layout = _take(self.cache.tokens, queries_N[owner_N == self.rank])
        batch = Batch(
            owner_of_video_V=owner_V,
            owner_of_query_N=owner_N,
            video_of_query_N=torch.from_numpy(video_of_query_N),
            relevant_NV=self._relevant(queries_N, videos_V),
            frames_RD=frames_RD,
            teacher_frames_RD=_take(self.cache.teacher_frames, mine_v)[0],
            frame_layout=frame_layout,
            tokens_RD=tokens_RD,
            token_layout=token_layout,
            teacher_queries_ND=_take(self.cache.teacher_queries, queries_N)[0],
            own=OwnFrames.of(torch.from_numpy(local_N), frame_layout),
        )
        return _each_tensor(batch, Tensor.pin_memory) if torch.device(self.device).type == "cuda" else batch

    def _relevant(self, queries_N: np.ndarray, videos_V: np.ndarray) -> Tensor | None:
        if not self.cache.has_several_relevant:
            return None
        return torch.from_numpy(self.cache.is_relevant(queries_N, videos_V))

    def take(self, array: Ragged, items: np.ndarray) -> tuple[Tensor, Layout]:
        """The rows of some items of one of the cache's arrays, and their layout, on the device."""
        rows_RD, layout = _take(array, items)
        return self.place(rows_RD), self.place(layout)

    def place(self, item: Any) -> Any:
        """Bring a tensor, or all tensors of a batch or layout, to the device, and features to the dtype."""
        return _each_tensor(item, self._place_tensor)

    def _place_tensor(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype, non_blocking=True)


def _take(array: Ragged, items: np.ndarray) -> tuple[Tensor, Layout]:
    rows_RD, lengths = array.take(items)
    return torch.from_numpy(rows_RD), Layout.from_lengths(torch.from_numpy(lengths))


def _each_tensor(item: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same item with every tensor changed, those inside dataclasses too."""
    if isinstance(item, Tensor):
        return change(item)
    if is_dataclass(item) and not isinstance(item, type):
        return replace(item, **{field.name: _each_tensor(getattr(item, field.name), change) for field in fields(item)})
    return item


def prefetch(make: Callable[[Item], Result], items: Iterable[Item], depth: int = 2) -> Iterator[Result]:
    """`map(make, items)`, with the next `depth` results made ahead in a thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

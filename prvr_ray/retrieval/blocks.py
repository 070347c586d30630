"""Frames as callers pass them (`FrameBlock`) and as they are multiplied (`WindowGroup`): ragged, never padded.

Shape suffixes: V windows of a block, W windows of a group, R rows (frames of all windows together), N rows of any kind,
D features.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from prvr_ray.retrieval.buffers import Memory

Array = np.ndarray | torch.Tensor


@dataclass(frozen=True, eq=False)
class FrameBlock:
    """Some windows and their frames. A video may have several windows, in one block or in several.

    Attributes:
        video_ids: the video of each window, V strings.
        offsets: int64 (V + 1): window v has the rows [offsets[v], offsets[v + 1]); or one such array per branch.
        frames: per branch one (R, D) matrix of unit rows, any float dtype.

    Raises:
        ValueError: the offsets do not divide the rows into V windows of at least one frame each.
    """

    video_ids: list[str]
    offsets: Array | Sequence[Array]
    frames: Sequence[Array]
    branch_offsets: list[np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        per_branch = list(self.offsets) if _is_nested(self.offsets) else [self.offsets] * len(self.frames)
        object.__setattr__(self, "branch_offsets", [np.asarray(item, dtype=np.int64) for item in per_branch])
        if not self.frames or len(self.branch_offsets) != len(self.frames):
            raise ValueError(f"frames have {len(self.frames)} branches, offsets have {len(self.branch_offsets)}")
        for offsets, rows_RD in zip(self.branch_offsets, self.frames, strict=True):
            self._check(offsets, tuple(rows_RD.shape))

    def _check(self, offsets: np.ndarray, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or offsets.shape != (len(self.video_ids) + 1,):
            raise ValueError(
                f"frames of shape {shape} and offsets of shape {offsets.shape} for {len(self.video_ids)} windows; "
                "frames need two dimensions, offsets one more entry than there are windows"
            )
        if offsets[0] != 0 or offsets[-1] != shape[0]:
            raise ValueError(f"offsets go from {offsets[0]} to {offsets[-1]}; they must go from 0 to {shape[0]} rows")
        empty = np.flatnonzero(np.diff(offsets) < 1)
        if len(empty):
            raise ValueError(f"window {empty[0]} (video {self.video_ids[empty[0]]!r}) has no frames")


def _is_nested(offsets: Array | Sequence[Array]) -> bool:
    return len(offsets) > 0 and np.ndim(offsets[0]) == 1


class Names:
    """Numbers video ids in order of arrival, so that the kernels handle int64 ordinals and never strings."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._ordinals: dict[str, int] = {}

    def ordinals(self, video_ids: Sequence[str]) -> torch.Tensor:
        """Return the ordinal of each id, (len(video_ids),) int64; new ids get the next free ordinals."""
        for video_id in video_ids:
            if video_id not in self._ordinals:
                self._ordinals[video_id] = len(self.ids)
                self.ids.append(video_id)
        return torch.tensor([self._ordinals[video_id] for video_id in video_ids], dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class BranchRows:
    """One branch's frames of some windows, stored in order of arrival and read in the order of the windows.

    Rows are gathered tile by tile, where they are multiplied: at 1,000 queries that costs 1 % of the product, while a
    sorted copy of a whole group cost 5 %.

    Attributes:
        stored_RD: in the stored dtype.
        offsets: int64 (W + 1), on the host: window w has the rows [offsets[w], offsets[w + 1]) in reading order.
        order_R: int64, the stored row of each row in reading order; None where the two orders are the same.
    """

    stored_RD: torch.Tensor
    offsets: np.ndarray
    order_R: torch.Tensor | None = None

    def read(self, start: int, stop: int, memory: Memory) -> torch.Tensor:
        """Return the rows of the windows [start, stop) in float32.

        A view where they are stored that way; otherwise a copy in `memory`, which the next read overwrites.
        """
        rows = slice(int(self.offsets[start]), int(self.offsets[stop]))
        if self.order_R is None:
            return memory.converted("rows", self.stored_RD[rows], torch.float32)
        return self._gather(self.order_R[rows], memory)

    def take(self, row_N: torch.Tensor, memory: Memory) -> torch.Tensor:
        """Return some rows, given by their indices in reading order, as a float32 copy like that of `read`."""
        return self._gather(row_N if self.order_R is None else self.order_R[row_N], memory)

    def _gather(self, row_N: torch.Tensor, memory: Memory) -> torch.Tensor:
        stored_ND = memory.tensor("stored", (len(row_N), self.stored_RD.shape[1]), self.stored_RD.dtype)
        torch.index_select(self.stored_RD, 0, row_N, out=stored_ND)
        return memory.converted("rows", stored_ND, torch.float32)

    def first_broken_window(self) -> int:
        """Return the first window with a row whose norm is not a finite float32; one must exist."""
        memory = Memory(self.stored_RD.device)
        norms = (torch.linalg.vector_norm(self.read(w, w + 1, memory), dim=1) for w in range(len(self.offsets) - 1))
        return next(window for window, norm_F in enumerate(norms) if not norm_F.isfinite().all())


@dataclass(frozen=True, eq=False)
class WindowGroup:
    """Some windows on the computing device, sorted by length.

    Adjacent windows of equal length form one dense block, so their maxima need one call instead of a loop over windows.

    Attributes:
        videos_W, windows_W: ordinals of each window's video and of the window itself (its index among all windows).
        branches: per branch, the windows' frames.
        repeats_within: whether a video has several windows in this group.
        repeats_earlier: whether a video had windows in an earlier group.
    """

    videos_W: torch.Tensor
    windows_W: torch.Tensor
    branches: list[BranchRows]
    repeats_within: bool
    repeats_earlier: bool

    def __len__(self) -> int:
        return len(self.videos_W)


def window_groups(
    blocks: Iterable[FrameBlock], names: Names, device: torch.device, max_rows: int, first_window: int = 0
) -> Iterator[WindowGroup]:
    """Join small blocks and cut large ones into groups of about max_rows rows of the first branch.

    Args:
        blocks: read once, in order.
        names: assigns ordinals to the blocks' videos.
        device: where the groups are placed.
        max_rows: rows of a group; a single longer window makes a group of its own.
        first_window: the ordinal of the first window.

    Raises:
        ValueError: blocks that differ in their number of branches or features.
    """
    parts: list[_Part] = []
    num_rows, num_windows = 0, first_window
    shape: list[int] | None = None
    for block in blocks:
        dims = [rows.shape[1] for rows in block.frames]
        shape = shape or dims
        if dims != shape:
            raise ValueError(f"the branches of a block have {dims} features, those of the first block {shape}")
        for part in _cut_block(block, num_windows, max_rows):
            if parts and num_rows + part.num_rows > max_rows:
                yield _group(parts, names, device)
                parts, num_rows = [], 0
            parts.append(part)
            num_rows += part.num_rows
        num_windows += len(block.video_ids)
    if parts:
        yield _group(parts, names, device)


@dataclass(frozen=True, eq=False)
class _Part:
    """Windows [start, stop) of a block; `first` is the ordinal of window `start`."""

    block: FrameBlock
    start: int
    stop: int
    first: int

    @property
    def num_rows(self) -> int:
        offsets = self.block.branch_offsets[0]
        return int(offsets[self.stop] - offsets[self.start])

    def rows(self, branch: int, device: torch.device) -> torch.Tensor:
        low, high = self.block.branch_offsets[branch][[self.start, self.stop]]
        return as_tensor(self.block.frames[branch][low:high]).to(device, non_blocking=True)

    def lengths(self, branch: int) -> np.ndarray:
        return np.diff(self.block.branch_offsets[branch][self.start : self.stop + 1])


def _cut_block(block: FrameBlock, num_before: int, max_rows: int) -> Iterator[_Part]:
    for start, stop in spans(block.branch_offsets[0], max_rows):
        yield _Part(block, start, stop, num_before + start)


def spans(offsets: np.ndarray, max_rows: int) -> Iterator[tuple[int, int]]:
    """Cut windows into consecutive ranges [start, stop) of at most max_rows rows; a longer window is a range alone."""
    start, num_windows = 0, len(offsets) - 1
    while start < num_windows:
        stop = int(np.searchsorted(offsets, offsets[start] + max_rows, side="right")) - 1
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def _group(parts: list[_Part], names: Names, device: torch.device) -> WindowGroup:
    num_known = len(names.ids)
    videos_W = torch.cat([names.ordinals(part.block.video_ids[part.start : part.stop]) for part in parts])
    num_videos = len(videos_W.unique())
    windows_W = torch.cat([torch.arange(part.first, part.first + part.stop - part.start) for part in parts])
    branches = range(len(parts[0].block.frames))
    lengths = [np.concatenate([part.lengths(branch) for part in parts]) for branch in branches]
    order_W = np.lexsort(lengths[::-1])  # by the first branch's length, then by those of the other branches
    return WindowGroup(
        videos_W=videos_W[order_W].to(device),
        windows_W=windows_W[order_W].to(device),
        branches=[_branch(parts, branch, lengths[branch], order_W, device) for branch in branches],
        repeats_within=num_videos < len(videos_W),
        repeats_earlier=len(names.ids) - num_known < num_videos,
    )


def _branch(
    parts: list[_Part], branch: int, lengths_W: np.ndarray, order_W: np.ndarray, device: torch.device
) -> BranchRows:
    """Join the parts' rows, to be read in the given order of windows."""
    rows = [part.rows(branch, device) for part in parts]
    stored_RD = rows[0] if len(rows) == 1 else torch.cat(rows)
    starts_W = (np.cumsum(lengths_W) - lengths_W)[order_W]
    offsets = np.concatenate([[0], np.cumsum(lengths_W[order_W])])
    if (order_W[1:] > order_W[:-1]).all():  # already sorted, as when all windows have one length: read without a gather
        return BranchRows(stored_RD, offsets)
    order_R = np.arange(len(stored_RD)) + np.repeat(starts_W - offsets[:-1], lengths_W[order_W])
    return BranchRows(stored_RD, offsets, torch.from_numpy(order_R).to(device))


def as_tensor(array: Array) -> torch.Tensor:
    """Return a tensor over the same memory. Torch warns of read-only arrays from files, but nothing is written here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.as_tensor(array)

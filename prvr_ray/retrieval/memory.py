"""Memory for what large products leave behind: one tile, group or search leaves it to the next.

Fresh pages cost a search on two cores 5 to 15 % of its time, and the allocator gives pages of this size back each time.
"""

import contextlib
import itertools
import math
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

_SPARE = defaultdict[str, list["Memory"]](list)  # what nobody uses, by purpose: sizes differ between purposes
_SPARE_BYTES = 1 << 29  # of all of it
_SPARE_LOCK = threading.RLock()  # a finalizer may run while its own thread holds it


class Memory:
    """Tensors by name, on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: dict[str, torch.Tensor] = {}

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self._kept.values()))

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A tensor of that shape and type, its values as they come; the next one of that name takes its place."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if name not in self._kept or len(self._kept[name]) < num_bytes:
            self._kept.pop(name, None)  # before its successor comes
            self._kept[name] = _fresh(num_bytes, self.device)
        return self._kept[name][:num_bytes].view(dtype).view(shape)

    def converted(self, name: str, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The values in that type: themselves where they have it, else in the tensor of that name."""
        return values if values.dtype == dtype else self.tensor(name, values.shape, dtype).copy_(values)


@contextlib.contextmanager
def borrowed_memory(purpose: str, device: torch.device) -> Iterator[Memory]:
    """Memory that nobody else has until the block ends; `purpose` and `device` as for `memory_of`."""
    memory = _borrow(purpose, device)
    try:
        yield memory
    finally:
        _give_back(purpose, memory)


def memory_of(owner: object, purpose: str, device: torch.device) -> Memory:
    """Memory that nobody else has until the owner is gone.

    Args:
        owner: anything that can be referred to weakly.
        purpose: users of one purpose need memory of about one size.
        device: where the tensors will lie.
    """
    memory = _borrow(purpose, device)
    weakref.finalize(owner, _give_back, purpose, memory)
    return memory


def _borrow(purpose: str, device: torch.device) -> Memory:
    with _SPARE_LOCK:
        spare = _SPARE[purpose]
        return spare.pop() if spare and device.type == "cpu" else Memory(device)


def _give_back(purpose: str, memory: Memory) -> None:
    """The process keeps it for the next one, within limits; a GPU's memory torch itself keeps."""
    with _SPARE_LOCK:
        spare = itertools.chain.from_iterable(_SPARE.values())
        if memory.device.type == "cpu" and sum(item.num_bytes for item in [*spare, memory]) <= _SPARE_BYTES:
            _SPARE[purpose].append(memory)


def _fresh(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Bytes as they come. NumPy asks for huge pages: 92 MB cost 8 ms then, not 36."""
    if device.type != "cpu":
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)
    return torch.from_numpy(np.empty(max(1, num_bytes), np.uint8))  # of no byte torch allows no view

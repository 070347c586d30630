"""Reusable buffers for large products: each tile, group and search passes its buffers on to the next.

The allocator returns blocks of this size to the operating system, so every new one costs page faults: 5 to 15 % of the
time of a search on two cores, up to 23,000 faults in one search in `fast`.
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

_SPARE = defaultdict[str, list["Memory"]](list)  # unused buffers, by purpose because sizes differ between purposes
_SPARE_BYTES = 1 << 29  # the most that unused buffers of all purposes may take together
_SPARE_LOCK = threading.RLock()  # reentrant: a finalizer may run on the thread that holds the lock


class Memory:
    """Buffers by name, on one device. Not safe to share between threads."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: dict[str, torch.Tensor] = {}

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self._kept.values()))

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return an uninitialised tensor of that shape and type; the next one of the same name overwrites it."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if name not in self._kept or len(self._kept[name]) < num_bytes:
            self._kept.pop(name, None)  # first, so that the old and the new buffer never exist together
            self._kept[name] = _fresh(num_bytes, self.device)
        return self._kept[name][:num_bytes].view(dtype).view(shape)

    def converted(self, name: str, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the values in that type: as they are where they have it, otherwise copied into the named buffer."""
        return values if values.dtype == dtype else self.tensor(name, values.shape, dtype).copy_(values)


@contextlib.contextmanager
def borrowed_memory(purpose: str, device: torch.device) -> Iterator[Memory]:
    """Lend buffers that nobody else uses until the `with` block ends; `purpose` and `device` as for `memory_of`."""
    memory = _borrow(purpose, device)
    try:
        yield memory
    finally:
        _give_back(purpose, memory)


def memory_of(owner: object, purpose: str, device: torch.device) -> Memory:
    """Lend buffers that nobody else uses until the owner is garbage-collected.

    Args:
        owner: any object that supports weak references.
        purpose: groups users that need buffers of about the same size.
        device: of the tensors.
    """
    memory = _borrow(purpose, device)
    weakref.finalize(owner, _give_back, purpose, memory)
    return memory


def free_spare_memory() -> None:
    """Free the buffers that nobody uses now, before work of another kind that needs the memory itself."""
    with _SPARE_LOCK:
        _SPARE.clear()


def _borrow(purpose: str, device: torch.device) -> Memory:
    with _SPARE_LOCK:
        spare = _SPARE[purpose]
        return spare.pop() if spare and device.type == "cpu" else Memory(device)


def _give_back(purpose: str, memory: Memory) -> None:
    """Keep the buffers for the next user, up to the limit. On a GPU torch's own caching allocator does this."""
    with _SPARE_LOCK:
        spare = itertools.chain.from_iterable(_SPARE.values())
        if memory.device.type == "cpu" and sum(item.num_bytes for item in [*spare, memory]) <= _SPARE_BYTES:
            _SPARE[purpose].append(memory)


def _fresh(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Allocate uninitialised bytes. On a CPU NumPy does it, with huge pages: 92 MB take 8 ms instead of 36."""
    if device.type != "cpu":
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)
    return torch.from_numpy(np.empty(max(1, num_bytes), np.uint8))  # torch cannot view an empty array as another type

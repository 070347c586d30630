"""Matrix products of frames with queries, on every core, in the precision that the bound assumes.

Shape suffixes: Q queries, R rows, D features.
"""

import contextlib
import os
import platform
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from prvr_ray.retrieval.memory import Memory

MODES = ("exact", "fast")


def product_type(mode: str, device: torch.device) -> torch.dtype:
    """What the products of a mode are made in: bfloat16 in `fast` where that is faster, else float32.

    Raises:
        ValueError: no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; one of {', '.join(MODES)}")
    return torch.bfloat16 if mode == "fast" and has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 with instructions of its own: without, float32 is up to 8 times as fast."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not (_has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    emulates = platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_avx512_bf16_supported()
    return not emulates  # oneDNN does so where it finds AVX-512 without bfloat16


def multiplier(queries_QD: torch.Tensor) -> Callable[[torch.Tensor, Memory], torch.Tensor]:
    """What multiplies rows, (R, D), with all queries: (R, Q), all in the queries' dtype; it may lie in the memory.

    In float32 on a CPU oneDNN takes the place of `torch.mm`'s MKL: 8 % faster on an AMD Zen 4, for the queries are laid
    out once. Torch has it in operators of its own compiler only; where they are missing, `torch.mm` multiplies.
    """
    if _suits_onednn(queries_QD):
        packed = torch.ops.mkldnn._reorder_linear_weight(queries_QD.contiguous())
        return lambda rows_RD, _: torch.ops.mkldnn._linear_pointwise(rows_RD, packed, None, "none", [], "")
    queries_DQ = queries_QD.T

    def multiply(rows_RD: torch.Tensor, memory: Memory) -> torch.Tensor:
        products_RQ = memory.tensor("products", (len(rows_RD), len(queries_QD)), queries_QD.dtype)
        return torch.mm(rows_RD, queries_DQ, out=products_RQ)  # given its output, autocast leaves the product alone

    return multiply


def _suits_onednn(queries_QD: torch.Tensor) -> bool:
    """Whether oneDNN is there, and its precision is torch's (`full_precision`), not one that the environment sets."""
    return (
        queries_QD.device.type == "cpu"
        and queries_QD.dtype == torch.float32
        and queries_QD.numel() > 0
        and _has_onednn()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and not any(f"{name}_DEFAULT_FPMATH_MODE" in os.environ for name in ("ONEDNN", "DNNL"))
    )


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def on_threads(work: Callable[[], None], num_parts: int, device: torch.device) -> None:
    """Run the same work on as many threads as torch may use, one of torch's for each.

    Each core works through parts of its own, and no small step waits for all of them. On a GPU the calling thread does
    everything.

    Args:
        work: called once on each thread; what it takes its parts from is shared.
        num_parts: how many there are: more threads would find nothing to do.
        device: what computes.
    """
    num_threads = torch.get_num_threads()
    num_workers = min(num_threads, num_parts)
    if device.type != "cpu" or num_workers == 1:
        work()
        return
    try:
        with ThreadPoolExecutor(num_workers, initializer=_begin_thread) as pool:
            for done in [pool.submit(work) for _ in range(num_workers)]:
                done.result()
    finally:
        torch.set_num_threads(num_threads)  # what the threads set holds for the process


def _begin_thread() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)  # each thread has its own


class _SharedPrecision:
    """The precision of the process's products: of users that overlap the first sets it, the last restores it."""

    def __init__(self) -> None:
        self._lock, self._num_users = threading.Lock(), 0

    def __enter__(self) -> None:
        cuda = torch.backends.cuda.matmul
        with self._lock:
            if not self._num_users:
                self._standing = torch.get_float32_matmul_precision(), cuda.allow_bf16_reduced_precision_reduction
                torch.set_float32_matmul_precision("highest")
                cuda.allow_bf16_reduced_precision_reduction = False
            self._num_users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_users -= 1
            if not self._num_users:
                precision, reduced = self._standing
                torch.set_float32_matmul_precision(precision)
                torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced


_SHARED_PRECISION = _SharedPrecision()


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Keep float32 products and bfloat16 sums as the bound assumes them, whatever the process has set.

    No gradients either, and no inference mode: its tensors cannot be written to by other threads and later searches.
    """
    with _SHARED_PRECISION, torch.inference_mode(False), torch.no_grad():
        yield

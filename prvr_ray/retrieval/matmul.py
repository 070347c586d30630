"""Matrix products of frames with queries, on every core, in the precision that the bound assumes.

Shape suffixes: Q queries, R rows, D features.
"""

import contextlib
import importlib.util
import os
import platform
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from prvr_ray.retrieval.buffers import Memory

MODES = ("auto", "exact", "fast")


def product_type(mode: str, device: torch.device) -> torch.dtype:
    """Return the type of a mode's products.

    `exact` takes float32. `fast` takes float16 where the Triton kernels run, else bfloat16 where the device has
    instructions for it, else float32. `auto` takes what `fast` does: the low precision is taken only where it is the
    faster one, and the answers are the same.

    Raises:
        ValueError: no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; one of {', '.join(MODES)}")
    if mode == "exact":
        return torch.float32
    if has_kernels(device):
        return torch.float16
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def has_kernels(device: torch.device) -> bool:
    """Return whether `prvr_ray.retrieval.kernels` runs here: CUDA of compute capability 8.0 or newer, with Triton.

    Triton also needs a C compiler at run time. Without one, products take the path of other devices, which is slower.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return importlib.util.find_spec("triton") is not None and has_c_compiler()


def has_c_compiler() -> bool:
    """Return whether Triton finds a C compiler, as it looks for one: $CC, gcc, clang."""
    return any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang"))


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 instructions.

    Emulated bfloat16 products are up to 8 times slower than float32: 9 against 70 GFLOP/s per pair of cores with AVX2.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not (_has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    # oneDNN reports support on x86 with plain AVX-512 too, where it emulates bfloat16.
    emulates = platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_avx512_bf16_supported()
    return not emulates


def multiplier(queries_QD: torch.Tensor) -> Callable[[torch.Tensor, Memory], torch.Tensor]:
    """Return a function that multiplies rows, (R, D), by all queries: (R, Q), in the queries' dtype.

    The result may lie in the buffers that the function is given, so the next product overwrites it.

    In float32 on a CPU oneDNN replaces the MKL of `torch.mm`. It packs the queries once for all tiles, which makes it
    8 % faster on an AMD Zen 4. Torch offers it only through operators that belong to its compiler; without them
    `torch.mm` is used.
    """
    if _suits_onednn(queries_QD):
        packed = torch.ops.mkldnn._reorder_linear_weight(queries_QD.contiguous())
        return lambda rows_RD, _: torch.ops.mkldnn._linear_pointwise(rows_RD, packed, None, "none", [], "")
    queries_DQ = queries_QD.T

    def multiply(rows_RD: torch.Tensor, memory: Memory) -> torch.Tensor:
        products_RQ = memory.tensor("products", (len(rows_RD), len(queries_QD)), queries_QD.dtype)
        return torch.mm(rows_RD, queries_DQ, out=products_RQ)  # with `out=`, autocast does not change the precision

    return multiply


def _suits_onednn(queries_QD: torch.Tensor) -> bool:
    """Return whether oneDNN's float32 product is available, and no environment variable lowers its precision.

    `full_precision` controls torch's settings only, so a precision set by the environment would break the bound.
    """
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
    """Call `work` once on each of as many threads as torch may use; within each, torch uses one thread.

    Each core then goes through its own parts. With torch's own threading all cores would meet after every small step:
    a search in `exact` took 1.75 s with the exact dot products threaded by torch, 1.70 s with threads of their own, and
    one in `fast` 1.23 and 1.15 s. On a GPU the calling thread does everything.

    Args:
        work: takes parts from an iterator that all threads share, until it is empty.
        num_parts: how many parts there are; no more threads than this are started.
        device: the computing device.
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
        torch.set_num_threads(num_threads)  # the threads' own `set_num_threads(1)` also changed the process's setting


def _begin_thread() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)  # a new thread starts with gradients enabled, whatever its creator has set


class _SharedPrecision:
    """Sets the process-wide precision of products, and restores it.

    Where searches overlap on several threads, the first one sets it and the last one restores it. If each restored it
    for itself, the first to end would lower the precision of the others below what their bound assumes.
    """

    def __init__(self) -> None:
        self._lock, self._num_users = threading.Lock(), 0

    def __enter__(self) -> None:
        cuda = torch.backends.cuda.matmul
        with self._lock:
            if not self._num_users:
                self._saved = torch.get_float32_matmul_precision(), cuda.allow_bf16_reduced_precision_reduction
                torch.set_float32_matmul_precision("highest")
                cuda.allow_bf16_reduced_precision_reduction = False
            self._num_users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_users -= 1
            if not self._num_users:
                precision, reduced = self._saved
                torch.set_float32_matmul_precision(precision)
                torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced


_SHARED_PRECISION = _SharedPrecision()


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products and bfloat16 sums as precisely as the bound assumes, whatever the process has set.

    Gradients are off. Inference mode is off too: other threads and later searches write to the buffers, which they
    could not do to tensors that were created in inference mode.
    """
    with _SHARED_PRECISION, torch.inference_mode(False), torch.no_grad():
        yield

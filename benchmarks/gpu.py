"""The Triton kernel on a GPU: its time beside the bare product of the same type, and its error against float64.

    python benchmarks/gpu.py [--queries 16384 --windows 512 --frames 32 --dim 384]

Without CUDA it must run as `TRITON_INTERPRET=1 python benchmarks/gpu.py`, with small shapes: it then checks values on
the CPU and gives no time. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch

from prvr_ray.retrieval.kernels import window_maxima

_REPEATS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description="time the fused kernel on a GPU, or check its values without one")
    for name, value in {"queries": 16_384, "windows": 512, "frames": 32, "dim": 384}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("no CUDA here; TRITON_INTERPRET=1 checks the values on the CPU, with small shapes")
    generator = torch.Generator().manual_seed(0)
    num_rows = arguments.windows * arguments.frames
    queries_QD, rows_RD = (
        torch.nn.functional.normalize(torch.randn(count, arguments.dim, generator=generator), dim=1).half().to(device)
        for count in (arguments.queries, num_rows)
    )
    offsets = torch.arange(0, num_rows + 1, arguments.frames, device=device)

    def run_kernel() -> torch.Tensor:
        return window_maxima([(1.0, queries_QD)], [(rows_RD, offsets)])

    figures = {"largest_error": measure_error(run_kernel(), queries_QD, rows_RD, arguments.windows)}
    if device.type == "cuda":
        figures |= time_kernel(run_kernel, lambda: rows_RD @ queries_QD.T, queries_QD.numel() * num_rows * 2)
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'no GPU: values only, no times'}")
    print(json.dumps(figures))


def measure_error(found_WQ: torch.Tensor, queries_QD: torch.Tensor, rows_RD: torch.Tensor, num_windows: int) -> float:
    """Return the largest difference from float64, of at most 64 queries."""
    some_QD = queries_QD[:64].double()
    expected_WQ = (rows_RD.double() @ some_QD.T).view(num_windows, -1, len(some_QD)).amax(1)
    return float((found_WQ[:, : len(some_QD)] - expected_WQ).abs().max())


def time_kernel(kernel: Callable[[], object], product: Callable[[], object], num_operations: int) -> dict[str, float]:
    """Time kernel and bare product in turns; return their medians and the ratio."""
    seconds: dict[str, list[float]] = {"kernel_s": [], "product_s": []}
    for _ in range(_REPEATS):
        for name, work in (("kernel_s", kernel), ("product_s", product)):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            work()
            torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return medians | {
        "kernel_over_product": medians["product_s"] / medians["kernel_s"],
        "kernel_tflops": num_operations / medians["kernel_s"] / 1e12,
    }


if __name__ == "__main__":
    main()

"""Checks of the Triton kernels, run by test_kernels.py in processes of their own: `kernel_checks.py CHECK`.

values: in the interpreter (TRITON_INTERPRET=1). compile-80, -86, -89, -90: for that compute capability, without a GPU.
"""

import re
import subprocess
import sys
import tempfile

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget

from prvr_ray.retrieval import exact_dots, kernels, matmul
from prvr_ray.retrieval.blocks import FrameBlock
from prvr_ray.retrieval.scoring import search

# Shared memory that a program may use, in bytes: CUDA C Programming Guide, "Technical Specifications per Compute
# Capability", the maximum amount per thread block.
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}
LENGTHS = [[1, 3, 128, 129, 40, 1, 260, 8, 17, 2, 5, 64, 63, 1, 1, 30, 9, 31], [2, 1, 5, 300, *[4] * 14]]
WEIGHTS = [0.7, 0.3]


def unit_rows(generator: torch.Generator, count: int, dim: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def expect_maxima(queries, branches, bias_W) -> np.ndarray:
    """(W, Q) in float64, window by window."""
    total = 0.0
    for (weight, rows_QD), (rows_RD, offsets) in zip(queries, branches, strict=True):
        products_RQ = rows_RD.double().numpy() @ rows_QD.double().numpy().T
        edges = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        total = total + weight * np.stack([products_RQ[start:stop].max(0) for start, stop in edges])
    return total if bias_W is None else total - bias_W.double().numpy()[:, None]


def make_world(num_queries: int, dtype: torch.dtype, dim: int = 72):
    generator = torch.Generator().manual_seed(3)
    queries = [(weight, unit_rows(generator, num_queries, dim).to(dtype)) for weight in WEIGHTS]
    branches = []
    for lengths in LENGTHS:
        rows_RD = unit_rows(generator, sum(lengths), dim).to(dtype)
        branches.append((rows_RD, torch.tensor([0, *np.cumsum(lengths)])))
    return queries, branches, torch.randn(len(LENGTHS[0]), generator=generator)


def check_values() -> None:
    for num_queries, dtype in ((1, torch.float16), (130, torch.float16), (5, torch.float32)):
        queries, branches, bias_W = make_world(num_queries, dtype)
        for bias in (None, bias_W):
            found = kernels.window_maxima(queries, branches, bias)
            np.testing.assert_allclose(found.numpy(), expect_maxima(queries, branches, bias), atol=3e-6, rtol=0)
    check_ties_and_nan()
    check_exact_dots()
    check_search()


def check_ties_and_nan() -> None:
    queries, branches, _ = make_world(5, torch.float16)
    rows_RD, offsets = branches[0]
    rows_RD[offsets[4] : offsets[5]] = rows_RD[offsets[4]]  # a window of equal frames ties with each of them
    found = kernels.window_maxima(queries[:1], branches[:1])
    np.testing.assert_allclose(found.numpy(), expect_maxima(queries[:1], branches[:1], None), atol=3e-6, rtol=0)
    rows_RD[offsets[6] + 140] = torch.nan  # in the second step over the window's frames
    rows_RD[offsets[2]] = torch.nan  # in the first, which is full
    is_nan_W = kernels.window_maxima(queries[:1], branches[:1]).isnan()
    assert is_nan_W.all(1).nonzero().flatten().tolist() == [2, 6]
    assert is_nan_W.any(1).nonzero().flatten().tolist() == [2, 6]


def check_exact_dots() -> None:
    generator = torch.Generator().manual_seed(5)
    queries_QD, rows_RD = unit_rows(generator, 7, 50), unit_rows(generator, 300, 50)
    rows_RD[250] = rows_RD[3]
    query_N, row_N = torch.arange(7).repeat(300), torch.arange(300).repeat_interleave(7)
    dots_RQ = kernels.pair_dots(queries_QD, rows_RD, query_N, row_N).view(300, 7)
    np.testing.assert_allclose(dots_RQ.numpy(), (rows_RD.double() @ queries_QD.double().T).numpy(), atol=2e-6, rtol=0)
    assert torch.equal(dots_RQ[250], dots_RQ[3])
    assert len(kernels.pair_dots(queries_QD, rows_RD, query_N[:0], row_N[:0])) == 0


def check_search() -> None:
    """The whole search takes the kernels' path; its answers are those of float64."""
    matmul.has_kernels = exact_dots.has_kernels = lambda device: True
    queries, branches, _ = make_world(9, torch.float32)
    branches[0][0][branches[0][1][9]] = branches[0][0][0]
    block = FrameBlock(
        [f"v{number:02d}" for number in range(len(LENGTHS[0]))],
        [offsets.numpy() for _, offsets in branches],
        [rows_RD for rows_RD, _ in branches],
    )
    assert matmul.product_type("auto", torch.device("cpu")) == torch.float16
    found = search(queries, [block], 5, mode="fast")
    expected_WQ = expect_maxima(queries, branches, None)
    best_QK = np.argsort(-expected_WQ, axis=0, kind="stable")[:5].T
    assert [[int(name[1:]) for name in names] for names in found.video_ids] == best_QK.tolist()
    scores_QK = np.take_along_axis(expected_WQ.T, best_QK, axis=1)
    np.testing.assert_allclose(np.asarray(found.scores), scores_QK, atol=2e-6, rtol=0)


def compile_for(capability: int) -> None:
    maxima = {"queries": "*fp16", "rows": "*fp16", "offsets": "*i64", "bias": "*fp32", "best": "*fp32"}
    maxima |= {"weight": "fp32", "num_queries": "i32", "num_windows": "i32", "dim": "i32"}
    constants = {"HAS_BIAS": True, "IS_FIRST": False, "WINDOWS": kernels.WINDOWS_PER_PROGRAM, **kernels.TILE}
    options = {"num_warps": kernels.NUM_WARPS, "num_stages": kernels.NUM_STAGES}
    check_compiled(kernels.add_window_maxima, maxima, constants, options, capability)
    pairs = {"queries": "*fp32", "rows": "*fp32", "query_of": "*i64", "row_of": "*i64", "dots": "*fp32"}
    check_compiled(kernels.sum_pairs, pairs | {"num_pairs": "i32", "dim": "i32"}, {"BN": 128}, {}, capability)


def check_compiled(kernel, types, constants, options, capability: int) -> None:
    signature = types | dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in types if types[name][0] == "*"}
    aligned |= {(names.index("dim"),): [["tt.divisibility", 16]]}
    source = triton.compiler.ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.metadata.shared <= SHARED_BYTES[capability], compiled.metadata.shared
    report = assemble(compiled.asm["ptx"], capability)
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill", report)]
    print(kernel.__name__, capability, compiled.metadata.shared, re.findall(r"Used (\d+) registers", report), spills)
    assert spills, report
    assert not any(spills), report


def assemble(ptx: str, capability: int) -> str:
    """ptxas's report of registers and spills."""
    suffix = "a" if capability >= 90 else ""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [
            triton.knobs.nvidia.ptxas.path,
            "-v",
            f"--gpu-name=sm_{capability}{suffix}",
            file.name,
            "-o",
            "/dev/null",
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


if __name__ == "__main__":
    check = sys.argv[1]
    check_values() if check == "values" else compile_for(int(check.removeprefix("compile-")))

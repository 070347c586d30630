"""The CUDA kernels in Triton's interpreter against float64, and compiled for GPUs that need not be at hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
CHECKS = Path(__file__).with_name("kernel_checks.py")


def run_check(name: str, interpret: str) -> None:
    """Triton reads TRITON_INTERPRET when a kernel is defined, so each check has a process of its own."""
    environment = os.environ | {"TRITON_INTERPRET": interpret, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run([sys.executable, CHECKS, name], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_kernels_agree_with_float64_in_the_interpreter():
    run_check("values", "1")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90])
def test_kernels_compile_without_spills(capability):
    run_check(f"compile-{capability}", "0")


def test_the_benchmark_gives_no_time_without_a_gpu():
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    command = [sys.executable, script, "--queries", "5", "--windows", "3", "--frames", "7", "--dim", "40"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert list(figures) == ["largest_error"]
    assert figures["largest_error"] < 3e-6

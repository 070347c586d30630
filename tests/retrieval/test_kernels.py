"""The CUDA kernels in Triton's interpreter against float64, and compiled for GPUs that need not be at hand."""

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

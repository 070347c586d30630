"""Which type `fast` multiplies in."""

import platform
import time

import pytest
import torch

from prvr_ray.retrieval import matmul
from prvr_ray.retrieval.matmul import has_bfloat16, product_type  # `has_bfloat16` before the fixture replaces it

CPU = torch.device("cpu")


def seconds_of_products(*dtypes):
    """The fastest of many products of each type; they alternate, since other work may share the cores."""
    pairs = [torch.ones(2, 512, 384, dtype=dtype) for dtype in dtypes]
    times = [[] for _ in dtypes]
    for _ in range(40):
        for (rows, queries), mine in zip(pairs, times, strict=True):
            begun = time.perf_counter()
            torch.mm(rows, queries.T)
            mine.append(time.perf_counter() - begun)
    return map(min, times)


def pretend(monkeypatch, machine, onednn, avx512_bf16):
    """Another processor: its architecture, and what oneDNN and torch find there."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)


def test_bfloat16_is_taken_just_where_this_processor_multiplies_it_faster():
    bfloat16_s, float32_s = seconds_of_products(torch.bfloat16, torch.float32)
    assert has_bfloat16(CPU) == (bfloat16_s < float32_s)


@pytest.mark.parametrize(
    ("machine", "onednn", "avx512_bf16", "expected"),
    [
        ("x86_64", True, True, True),  # Zen 4, Cooper Lake
        ("x86_64", True, False, False),  # Cascade Lake: AVX-512 alone
        ("x86_64", False, False, False),  # Zen 1 to 3: AVX2
        ("aarch64", True, False, True),  # Graviton 3
        ("aarch64", False, False, False),  # Graviton 2
    ],
)
def test_bfloat16_needs_instructions_of_its_own(machine, onednn, avx512_bf16, expected, monkeypatch):
    pretend(monkeypatch, machine, onednn, avx512_bf16)
    assert has_bfloat16(CPU) == expected


@pytest.mark.parametrize("missing", [("enabled", False), ("is_available", lambda: False)])
def test_without_onednn_there_is_no_bfloat16(missing, monkeypatch):
    pretend(monkeypatch, "x86_64", onednn=True, avx512_bf16=True)
    assert has_bfloat16(CPU)
    monkeypatch.setattr(torch.backends.mkldnn, *missing)
    assert not has_bfloat16(CPU)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_has_bfloat16_from_ampere_on(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bfloat16(torch.device("cuda")) == expected


@pytest.mark.parametrize(
    ("mode", "has_it", "expected"),
    [
        ("fast", True, torch.bfloat16),
        ("fast", False, torch.float32),
        ("exact", True, torch.float32),
        ("exact", False, torch.float32),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
    ],
)
def test_all_modes_but_exact_take_bfloat16_where_the_device_has_it(mode, has_it, expected, monkeypatch):
    monkeypatch.setattr(matmul, "has_bfloat16", lambda device: has_it)
    assert product_type(mode, CPU) == expected


@pytest.mark.parametrize(
    ("capability", "compiler", "mode", "expected"),
    [
        ((8, 0), "gcc", "auto", torch.float16),
        ((8, 0), "gcc", "exact", torch.float32),
        ((9, 0), None, "fast", torch.bfloat16),  # Triton cannot build its launcher
        ((7, 5), "gcc", "auto", torch.bfloat16),  # `bfloat16_everywhere`
    ],
)
def test_a_gpu_takes_float16_where_the_kernels_run(capability, compiler, mode, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(matmul.shutil, "which", lambda name: compiler)
    assert product_type(mode, torch.device("cuda")) == expected

"""Every test here starts with no memory left by other searches, and `fast` takes bfloat16 whatever the processor."""

from collections import defaultdict

import pytest

from prvr_ray.retrieval import buffers, matmul


@pytest.fixture(autouse=True)
def spare(monkeypatch):
    left = defaultdict[str, list[buffers.Memory]](list)
    monkeypatch.setattr(buffers, "_SPARE", left)
    return left


@pytest.fixture(autouse=True)
def bfloat16_everywhere(monkeypatch):
    monkeypatch.setattr(matmul, "has_bfloat16", lambda device: True)

"""Every test here starts with no memory left by other searches, and `fast` takes bfloat16 whatever the processor."""

from collections import defaultdict

import pytest

from prvr_ray.retrieval import memory, multiplying


@pytest.fixture(autouse=True)
def spare(monkeypatch):
    left = defaultdict[str, list[memory.Memory]](list)
    monkeypatch.setattr(memory, "_SPARE", left)
    return left


@pytest.fixture(autouse=True)
def bfloat16_everywhere(monkeypatch):
    monkeypatch.setattr(multiplying, "has_bfloat16", lambda device: True)

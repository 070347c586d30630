"""Every test here starts with no memory left by other searches."""

from collections import defaultdict

import pytest

from prvr_ray.retrieval import memory


@pytest.fixture(autouse=True)
def spare(monkeypatch):
    left = defaultdict[str, list[memory.Memory]](list)
    monkeypatch.setattr(memory, "_SPARE", left)
    return left

"""What tests of stages share."""

import contextlib
from collections.abc import Iterator

import pytest


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`score` in this process and in one thread: what it deals out to actors, one worker does here."""
    import torch

    from prvr_ray.stages import score as stage

    def deal(scorers, method, tasks, *_):
        for task in tasks:
            if reason := getattr(scorers[0], method)(*task):
                raise ValueError(reason)

    monkeypatch.setattr(stage, "connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(
        stage, "start_scorers", lambda job, num_tasks, queries, settings: [stage.Scorer(job, queries, 0)]
    )
    monkeypatch.setattr(stage, "_deal", deal)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products wait longer for each other's threads than they compute
    yield
    torch.set_num_threads(num_threads)

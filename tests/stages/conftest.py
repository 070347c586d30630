"""What tests of stages share."""

import contextlib
from collections.abc import Iterator

import pytest
from support.in_process import local_dataset_of


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, local_ray: None) -> None:
    """`ingest` and `index` call their workers in this process; what the cluster has is still Ray's word."""
    for stage in ("ingest_pipeline", "index"):
        monkeypatch.setattr(f"prvr_ray.stages.{stage}.make_dataset", local_dataset_of)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`score` in this process and in one thread: one worker does here what actors do."""
    import torch

    from prvr_ray.stages import score as stage

    def run_here(scorers, method, tasks, *_):
        for task in tasks:
            if reason := getattr(scorers[0], method)(*task):
                raise ValueError(reason)

    monkeypatch.setattr(stage, "connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(
        stage, "start_scorers", lambda job, num_tasks, queries, settings: [stage.Scorer(job, queries, 0)]
    )
    monkeypatch.setattr(stage, "run_on_pool", run_here)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products wait longer for each other's threads than they compute
    yield
    torch.set_num_threads(num_threads)

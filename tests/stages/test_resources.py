"""What a cluster without an autoscaler says at once: local_ray has two CPUs and no GPU."""

import time

import pytest

from prvr_ray.config import resolve
from prvr_ray.stages import trial_training
from prvr_ray.stages.resources import Worker, pool_size, require, room


def test_options_name_only_what_is_wanted():
    assert Worker("decoder", cpus=2).options == {"num_cpus": 2}
    labelled = Worker("encoder", cpus=0, gpus=0.5, memory=10**9, labels={"pool": "gpu"})
    assert labelled.options == {"num_cpus": 0, "num_gpus": 0.5, "memory": 10**9, "label_selector": {"pool": "gpu"}}


def test_what_present_nodes_can_give_is_accepted(local_ray):
    require(Worker("decoder", cpus=0.5), count=4)


def test_room_is_counted_node_by_node(local_ray):
    shares = {0.5: 4, 0.9: 2, 1: 2, 1.5: 1, 2: 1, 3: 0}
    assert {cpus: room(Worker("worker", cpus)) for cpus in shares} == shares
    assert room(Worker("worker", labels={"pool": "gpu"})) == 0


def test_what_another_job_holds_counts_as_coming_back(local_ray):
    import ray

    held = ray.util.placement_group([{"CPU": 2}])
    assert held.wait(30)
    try:
        require(Worker("decoder", cpus=2))
    finally:
        ray.util.remove_placement_group(held)


@pytest.mark.parametrize(
    ("worker", "count", "missing"),
    [
        (Worker("encoder", gpus=1), 1, r"no node has 1 GPU \(at most 0\)"),
        (Worker("decoder", cpus=3), 1, r"no node has 3 CPU \(at most 2\)"),
        (Worker("decoder", cpus=1), 3, "its nodes have room for 2"),
        (Worker("decoder", memory=10**15), 1, r"no node has 1e\+15 memory"),
        (Worker("encoder", labels={"pool": "gpu"}), 1, "no node has the labels {'pool': 'gpu'}"),
    ],
)
def test_what_can_never_come_is_refused_at_once_and_named(local_ray, worker, count, missing):
    begun = time.monotonic()
    with pytest.raises(ValueError, match=missing):
        require(worker, count)
    assert time.monotonic() - begun < 5


def test_a_pool_is_as_large_as_its_work_within_its_bounds():
    assert [pool_size(2, 8, items, 10) for items in (0, 5, 30, 31, 1000)] == [2, 2, 3, 4, 8]


@pytest.mark.parametrize(
    ("can_grow", "max_concurrent", "expected", "asked"),
    [
        (True, 8, 8, 16),  # nodes come for eight groups of two workers
        (True, 0, 1, 2),  # none is there yet, and nobody said how many
        (False, 8, 3, 2),  # the seven workers of the present nodes are three groups
        (False, 2, 2, 2),
    ],
)
def test_groups_of_workers_start_as_many_as_said_where_their_nodes_may_come(
    can_grow, max_concurrent, expected, asked, monkeypatch
):
    requested = []
    monkeypatch.setattr(trial_training, "has_autoscaler", lambda: can_grow)
    monkeypatch.setattr(trial_training, "room", lambda worker: 0 if can_grow else 7)
    monkeypatch.setattr(trial_training, "require", lambda worker, count: requested.append(count))
    config = resolve({"train": {"num_workers": 2, "worker_cpus": 1}, "tune": {"max_concurrent": max_concurrent}})
    assert trial_training.trial_worker(config)[1] == expected
    assert requested == [asked]


def test_more_groups_than_the_nodes_that_can_come_hold_are_refused_with_the_setting(monkeypatch):
    def refuse(worker, count):
        raise ValueError(f"no {count} workers")

    monkeypatch.setattr(trial_training, "has_autoscaler", lambda: True)
    monkeypatch.setattr(trial_training, "require", refuse)
    config = resolve({"train": {"num_workers": 2, "worker_cpus": 1}, "tune": {"max_concurrent": 8}})
    with pytest.raises(ValueError, match=r"no 16 workers, or lower tune\.max_concurrent=8"):
        trial_training.trial_worker(config)

"""What a cluster without an autoscaler says at once: local_ray has two CPUs and no GPU."""

import time

import pytest

from prvr_ray.config import resolve
from prvr_ray.stages import trial
from prvr_ray.stages.resources import Pool, Worker, choose_pool_size, count_room, fit_pools, place_pools, require


def test_options_name_only_what_is_wanted():
    assert Worker("decoder", cpus=2).options == {"num_cpus": 2}
    labelled = Worker("encoder", cpus=0, gpus=0.5, memory=10**9, labels={"pool": "gpu"})
    assert labelled.options == {"num_cpus": 0, "num_gpus": 0.5, "memory": 10**9, "label_selector": {"pool": "gpu"}}


def test_what_present_nodes_can_give_is_accepted(local_ray):
    require(Worker("decoder", cpus=0.5), count=4)


def test_room_is_counted_node_by_node(local_ray):
    shares = {0.5: 4, 0.9: 2, 1: 2, 1.5: 1, 2: 1, 3: 0}
    assert {cpus: count_room(Worker("worker", cpus)) for cpus in shares} == shares
    assert count_room(Worker("worker", labels={"pool": "gpu"})) == 0


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


ENCODER, PUT = Worker("encoder", 0.5), Worker("put", 0.1)


@pytest.mark.parametrize(
    ("nodes", "decoder_cpus", "encoders", "expected"),
    [
        ([1], 0.5, (1, 1), None),  # 0.5 + 0.5 + 0.1: one of the three would never start
        ([1], 0.4, (1, 1), [1, 1, 1]),
        ([2], 0.5, (1, 1), [1, 1, 2]),
        ([2], 0.5, (1, 8), [2, 1, 1]),  # more encoders than there is room for would keep the others out
        ([0.6, 0.5], 0.5, (1, 1), [1, 1, 1]),
        ([0.6, 0.4], 0.5, (1, 1), None),  # as many CPUs in all, but on two nodes
        ([], 0.5, (1, 1), None),
    ],
)
def test_pools_fit_only_if_one_worker_of_each_runs_beside_the_others(nodes, decoder_cpus, encoders, expected):
    pools = [Pool(ENCODER, *encoders), Pool(PUT, 1, 1), Pool(Worker("decoder", decoder_cpus), 1, 9)]
    assert place_pools(pools, [({"CPU": cpus}, {}) for cpus in nodes]) == expected


def test_a_pool_goes_to_nodes_with_its_labels_and_its_gpus():
    pools = [Pool(Worker("encoder", 1, gpus=1), 1, 9), Pool(Worker("decoder", 1, labels={"pool": "cpu"}), 1, 9)]
    nodes = [({"CPU": 8.0, "GPU": 2.0}, {"pool": "gpu"}), ({"CPU": 3.0}, {"pool": "cpu"})]
    assert place_pools(pools, nodes) == [2, 3]
    assert place_pools(pools, nodes[:1]) is None


def test_pools_that_do_not_fit_are_refused_with_what_each_needs(local_ray):
    layouts = [[Pool(ENCODER, 3, 3), Pool(PUT, 1, 1), Pool(Worker("decoder", 0.5), 1, 9)]]
    with pytest.raises(
        ValueError, match=r"3 encoder\(s\) of CPU 0\.5; .*The nodes have 2 CPU, 0 GPU\. Lower encoder_cpus"
    ):
        fit_pools(layouts)


def test_a_pool_is_as_large_as_its_work_within_its_bounds():
    assert [choose_pool_size(2, 8, items, 10) for items in (0, 5, 30, 31, 1000)] == [2, 2, 3, 4, 8]


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
    monkeypatch.setattr(trial, "has_autoscaler", lambda: can_grow)
    monkeypatch.setattr(trial, "count_room", lambda worker: 0 if can_grow else 7)
    monkeypatch.setattr(trial, "require", lambda worker, count: requested.append(count))
    config = resolve({"train": {"num_workers": 2, "worker_cpus": 1}, "tune": {"max_concurrent": max_concurrent}})
    assert trial.size_trial_worker(config)[1] == expected
    assert requested == [asked]


def test_more_groups_than_the_nodes_that_can_come_hold_are_refused_with_the_setting(monkeypatch):
    def refuse(worker, count):
        raise ValueError(f"no {count} workers")

    monkeypatch.setattr(trial, "has_autoscaler", lambda: True)
    monkeypatch.setattr(trial, "require", refuse)
    config = resolve({"train": {"num_workers": 2, "worker_cpus": 1}, "tune": {"max_concurrent": 8}})
    with pytest.raises(ValueError, match=r"no 16 workers, or lower tune\.max_concurrent=8"):
        trial.size_trial_worker(config)

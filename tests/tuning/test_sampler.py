"""The sampler is seeded, learns, goes on after an interruption, and tells which settings matter."""

import math

import pytest

from prvr_ray.config import Config
from prvr_ray.tuning.sampler import Sampler, rate_importance
from prvr_ray.tuning.space import Point, contains, parse_space
from prvr_ray.tuning.trial import Trial

SPACE = parse_space(
    {
        "train.lr": {"loguniform": [1e-5, 1e-1]},
        "train.margin": {"uniform": [0.05, 0.5]},
        "train.hard_pool_size": {"choice": [1, 20]},
    },
    Config(),
)


def figure(point: Point) -> float:
    """Best at lr 1e-3; the margin matters a tenth as much; the pool not at all."""
    return -abs(math.log10(point["train.lr"]) + 3) - 0.1 * abs(point["train.margin"] - 0.2) / 0.3


def finished(name: str, point: Point) -> Trial:
    return Trial(name, point, "finished", {1: figure(point) - 1, 2: figure(point)}, 1.0)


def searched(method: str, seed: int, num_trials: int) -> list[Trial]:
    sampler, trials = Sampler(SPACE, method, seed, []), []
    for number in range(num_trials):
        trials.append(finished(f"{number:04d}", sampler.suggest(f"{number:04d}")))
        sampler.tell(trials[-1])
    return trials


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_the_same_seed_suggests_the_same_points(method: str) -> None:
    first, second, other = (searched(method, seed, 14) for seed in (1, 1, 2))
    assert first == second
    assert first != other
    assert all(contains(SPACE, trial.point) for trial in first)


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_an_interrupted_search_goes_on_where_it_was(method: str) -> None:
    whole = searched(method, 5, 16)
    for cut in (3, 12):
        resumed = Sampler(SPACE, method, 5, whole[:cut])
        points = []
        for number in range(cut, 16):
            points.append(resumed.suggest(f"{number:04d}"))
            resumed.tell(finished(f"{number:04d}", points[-1]))
        assert points == [trial.point for trial in whole[cut:]]


def test_tpe_comes_nearer_than_random_points() -> None:
    medians = {
        method: sorted(max(trial.best or -9 for trial in searched(method, seed, 40)) for seed in range(5))[2]
        for method in ("tpe", "random")
    }
    assert medians["tpe"] > medians["random"]


def test_a_users_point_outside_the_space_is_kept_but_not_learned() -> None:
    sampler = Sampler(SPACE, "tpe", 0, [])
    outside = {"train.lr": 0.5, "train.margin": 0.2, "train.hard_pool_size": 7}
    assert sampler.take("0000", outside) == outside
    sampler.tell(finished("0000", outside))
    assert contains(SPACE, sampler.suggest("0001"))


def test_stopped_and_failed_trials_are_learned_too() -> None:
    sampler = Sampler(SPACE, "tpe", 0, [])
    for number in range(15):
        point = sampler.suggest(str(number))
        state = ("finished", "stopped", "failed")[number % 3]
        curve = {} if state == "failed" else {1: figure(point)}
        sampler.tell(Trial(str(number), point, state, curve, 1.0))
    assert contains(SPACE, sampler.suggest("15"))


def test_importance_ranks_what_the_figure_depends_on() -> None:
    shares = rate_importance(SPACE, searched("random", 0, 60))
    assert next(iter(shares)) == "train.lr"
    assert shares["train.lr"] > 0.8
    assert shares["train.hard_pool_size"] < 0.05
    assert sum(shares.values()) == pytest.approx(1.0)


def test_importance_of_too_little_is_nothing() -> None:
    assert rate_importance(SPACE, []) == {}
    assert rate_importance(SPACE, searched("random", 0, 1)) == {}


def test_a_trial_survives_json() -> None:
    trial = Trial("0003", {"train.lr": 1e-3}, "stopped", {1: 10.0, 2: 12.5}, 4.5, "why", {"checkpoint": "x"})
    assert Trial.from_json(trial.to_json()) == trial
    assert trial.best == 12.5

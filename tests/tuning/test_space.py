"""The space reads rules, refuses what cannot be searched, and keeps points inside."""

import random
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from prvr_ray.config import DEFAULT_SPACE, Config, resolve
from prvr_ray.tuning.space import apply_point, contains, list_searchable, parse_space, perturb, point_of

RULES = {
    "train.lr": {"loguniform": [1e-4, 1e-3]},
    "train.margin": {"uniform": [0.05, 0.3]},
    "train.hard_pool_size": {"int": [1, 40]},
    "student.hidden_dim": {"choice": [64, 128]},
}


def test_each_kind_becomes_its_distribution() -> None:
    assert parse_space(RULES, Config()) == {
        "student.hidden_dim": CategoricalDistribution([64, 128]),
        "train.hard_pool_size": IntDistribution(1, 40),
        "train.lr": FloatDistribution(1e-4, 1e-3, log=True),
        "train.margin": FloatDistribution(0.05, 0.3),
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "empty"),
        ({"train.marjin": {"uniform": [0, 1]}}, r"unknown settings train.marjin; one of .*train\.margin"),
        ({"train.seed": {"int": [0, 9]}}, "unknown settings train.seed"),
        ({"train.margin": {"normal": [0, 1]}}, "'normal'; one of uniform, loguniform, choice, int"),
        ({"train.margin": {"uniform": [0.3, 0.1]}}, r"\[0.3, 0.1\] is empty"),
        ({"train.margin": {"uniform": [0.3, 0.3]}}, "is empty"),
        ({"train.hard_pool_size": {"uniform": [1, 40]}}, "whole number; use int, not uniform"),
        ({"train.margin": {"uniform": [0.3]}}, "two numbers"),
        ({"train.margin": {"uniform": [0.1, float("nan")]}}, "two numbers"),
        ({"train.hard_pool_size": {"int": [1, 2.5]}}, "two numbers"),
        ({"train.lr": {"loguniform": [0.0, 1.0]}}, "above 0"),
        ({"train.margin": {"choice": []}}, "one or more"),
        ({"train.margin": {"choice": [0.1, 0.1]}}, "different values"),
        ({"train.margin": {"uniform": [0.1, 0.2], "choice": [0.1]}}, "one rule"),
        ({"train.dropout": {"uniform": [0.1, 1.5]}}, "train.dropout=1.5"),
        ({"student.branches": {"choice": ["both"]}}, "student.branches"),
    ],
)
def test_an_unusable_rule_is_refused_with_its_reason(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_space(rules, Config())


def test_a_population_varies_no_shape_of_the_student() -> None:
    population = resolve({"tune": {"scheduler": "pbt"}})
    with pytest.raises(ValueError, match=r"pbt cannot vary student\.branches, student\.hidden_dim"):
        parse_space({**RULES, "student.branches": {"choice": [["inheritance"]]}}, population)
    assert parse_space(DEFAULT_SPACE, population)


def test_branches_are_a_choice_like_others(recwarn: pytest.WarningsRecorder) -> None:
    both = ["inheritance", "exploration"]
    space = parse_space({"student.branches": {"choice": [["inheritance"], both]}}, Config())
    assert contains(space, {"student.branches": both})
    assert not contains(space, {"student.branches": ["exploration"]})
    assert not recwarn.list


def test_every_searchable_setting_exists_and_machines_and_seeds_are_not_searched() -> None:
    values = Config().model_dump()
    assert all(path.split(".")[1] in values[path.split(".")[0]] for path in list_searchable())
    assert not {"train.seed", "train.num_epochs", "train.num_workers"} & set(list_searchable())


def test_a_point_goes_into_a_configuration_and_comes_out_again() -> None:
    point = {"train.lr": 5e-4, "student.hidden_dim": 64}
    config = apply_point(Config(), point)
    assert (config.train.lr, config.student.hidden_dim) == (5e-4, 64)
    assert config.train.margin == Config().train.margin
    assert point_of(config, list(point)) == point


def test_a_point_outside_is_known_as_such() -> None:
    space = parse_space(RULES, Config())
    inside = {"train.lr": 1e-3, "train.margin": 0.05, "train.hard_pool_size": 40, "student.hidden_dim": 64}
    assert contains(space, inside)
    assert not contains(space, {**inside, "train.lr": 2e-3})
    assert not contains(space, {**inside, "student.hidden_dim": 65})


def test_neighbours_stay_inside_and_keep_their_types() -> None:
    space = parse_space(RULES, Config())
    generator = random.Random(3)
    point = {"train.lr": 1e-3, "train.margin": 0.06, "train.hard_pool_size": 2, "student.hidden_dim": 64}
    seen = []
    for _ in range(200):
        point = perturb(space, point, generator)
        assert contains(space, point)
        assert isinstance(point["train.hard_pool_size"], int)
        seen.append(point)
    assert {item["student.hidden_dim"] for item in seen} == {64, 128}
    assert max(item["train.lr"] for item in seen) <= 1e-3

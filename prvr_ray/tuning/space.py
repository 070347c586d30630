"""The search space: which settings vary and within what, as plain rules that a YAML file holds.

A rule is `{kind: bounds}`: `{uniform: [low, high]}`, `{loguniform: [low, high]}`, `{int: [low, high]}`, both ends
included, or `{choice: [value, ...]}`. A point is one value for each setting of a space, by its path `train.lr`. Owns
the reading and checking of rules and points; how points are chosen is `prvr_ray.tuning.sampler`'s.
"""

import math
import random
import warnings
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from prvr_ray.config import SECTIONS, Config, resolve

Rules = dict[str, dict[str, list[Any]]]
Space = dict[str, BaseDistribution]
Point = dict[str, Any]

# Not for a search: what the confirmation repeats (seed), what the scheduler spends (epochs), data, and machines.
_FIXED = {
    "student": set[str](),
    "train": {
        *("seed", "num_epochs", "patience", "train_split", "validation_split"),
        *("num_workers", "min_workers", "worker_cpus", "worker_gpus", "max_failures"),
        *("videos_per_pass", "checkpoint_steps", "cache_folder"),
    },
}
# Members of a population take over each other's weights, which follow from these.
_SHAPING = {f"student.{field}" for field in ("hidden_dim", "num_heads", "max_frames", "max_tokens", "branches")}
_PERTURBATIONS = (0.8, 1.2)  # factors of population based training, as in arXiv 1711.09846


def list_searchable() -> list[str]:
    """The settings that a space may name."""
    return [
        f"{section}.{field}"
        for section, fixed in _FIXED.items()
        for field in SECTIONS[section].model_fields
        if field not in fixed
    ]


def parse_space(rules: Rules, base: Config) -> Space:
    """Check rules and turn them into Optuna's distributions, in the order of their names.

    Args:
        rules: setting path -> rule.
        base: the configuration around the space: both ends of every range, and every choice, must be valid in it.

    Raises:
        ValueError: no rule at all, an unknown setting or kind (the valid ones are listed), an empty range, a value that
            the setting refuses, or a setting that a population cannot vary.
    """
    if not rules:
        raise ValueError("tune.space is empty: name at least one setting to vary")
    unknown = sorted(set(rules) - set(list_searchable()))
    if unknown:
        raise ValueError(
            f"tune.space names unknown settings {', '.join(unknown)}; one of {', '.join(list_searchable())}"
        )
    shaping = sorted(_SHAPING & set(rules))
    if base.tune.scheduler == "pbt" and shaping:
        raise ValueError(
            f"tune.scheduler=pbt cannot vary {', '.join(shaping)}: members take over each other's weights; use asha"
        )
    space = {path: _distribution(path, rules[path]) for path in sorted(rules)}
    for path, distribution in space.items():
        for value in _extremes(distribution):
            apply_point(base, {path: value})
    return space


def apply_point(base: Config, point: Point) -> Config:
    """The base configuration with a point's values in it.

    Raises:
        ValueError: a setting or a value that the configuration refuses.
    """
    values = base.model_dump()
    for path, value in point.items():
        section, _, field = path.partition(".")
        values.get(section, {})[field] = value
    return resolve(values)


def point_of(config: Config, paths: list[str]) -> Point:
    """The values that a configuration has at some setting paths."""
    values = config.model_dump()
    return {path: values[path.partition(".")[0]][path.partition(".")[2]] for path in paths}


def contains(space: Space, point: Point) -> bool:
    """Whether every value of a point lies in the space."""
    return all(_holds(distribution, point[path]) for path, distribution in space.items())


def perturb(space: Space, point: Point, generator: random.Random) -> Point:
    """A neighbour of a point: numbers times 0.8 or 1.2 within their range, choices drawn anew one time in four."""
    return {path: _perturbed(distribution, point[path], generator) for path, distribution in space.items()}


def _distribution(path: str, rule: dict[str, list[Any]]) -> BaseDistribution:
    if len(rule) != 1:
        raise ValueError(f"tune.space.{path} must be one rule, KIND: [...], not {rule!r}")
    [(kind, bounds)] = rule.items()
    if kind == "choice":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lists, such as branches: Optuna minds them only where it stores a study
            return CategoricalDistribution(_distinct(path, bounds))
    if kind not in ("uniform", "loguniform", "int"):
        raise ValueError(f"tune.space.{path} has unknown kind {kind!r}; one of uniform, loguniform, choice, int")
    low, high = _range(path, kind, bounds)
    if kind != "int" and _is_integer(path):
        raise ValueError(f"tune.space.{path}: the setting is a whole number; use int, not {kind}")
    if kind == "int":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=kind == "loguniform")


def _is_integer(path: str) -> bool:
    section, _, field = path.partition(".")
    return SECTIONS[section].model_fields[field].annotation is int


def _range(path: str, kind: str, bounds: list[Any]) -> tuple[float, float]:
    number = int if kind == "int" else (int, float)
    if len(bounds) != 2 or not all(isinstance(end, number) and math.isfinite(end) for end in bounds):
        raise ValueError(f"tune.space.{path}: {kind} needs [low, high], two numbers, not {bounds!r}")
    low, high = bounds
    if low >= high:
        raise ValueError(f"tune.space.{path}: {kind} [{low}, {high}] is empty; low must be below high")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"tune.space.{path}: loguniform [{low}, {high}] needs a low end above 0")
    return low, high


def _distinct(path: str, values: list[Any]) -> list[Any]:
    if not values or len({repr(value) for value in values}) < len(values):
        raise ValueError(f"tune.space.{path}: choice needs one or more different values, not {values!r}")
    return values


def _extremes(distribution: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low, distribution.high


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    low, high = _extremes(distribution)
    return low <= value <= high


def _perturbed(distribution: BaseDistribution, value: Any, generator: random.Random) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return generator.choice(distribution.choices) if generator.random() < 0.25 else value
    low, high = _extremes(distribution)
    moved = min(max(value * generator.choice(_PERTURBATIONS), low), high)
    return round(moved) if isinstance(distribution, IntDistribution) else moved

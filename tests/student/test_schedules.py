import math

import pytest

from prvr_ray.config import TrainSettings
from prvr_ray.student.objective import EpochWeights, find_idle_decays
from prvr_ray.student.schedules import distillation_weight, soft_target_factor


@pytest.mark.parametrize("epoch", range(0, 120, 5))
def test_schedules_are_the_published_ones(golden, epoch):
    ours = [
        distillation_weight("exp", epoch, 120),
        distillation_weight("linear", epoch, 120),
        distillation_weight("sigmoid", epoch, 120),
        soft_target_factor("sigmoid", 0.8, 0.0, epoch, 120),
        *(soft_target_factor(kind, 0.8, 0.5, epoch, 120) for kind in ("sigmoid", "exp", "linear", "cosine")),
    ]
    assert ours == pytest.approx(golden[f"schedule/{epoch}"].tolist(), rel=1e-5)


def test_none_never_decays():
    assert distillation_weight("none", 1000, 120) == 1.0
    assert soft_target_factor("none", 0.8, 0.5, 1000, 120) == 0.8


def test_the_rate_of_an_exponential_decay_is_a_setting():
    assert distillation_weight("exp", 3, 120, exp_rate=0.5) == 0.125


def test_what_starts_below_its_floor_decays_to_zero():
    assert soft_target_factor("linear", 0.4, 0.5, 60, 120) == pytest.approx(0.2)
    assert soft_target_factor("exp", 0.4, 0.5, 1000, 1000) == pytest.approx(0)


def test_very_late_epochs_reach_the_floor_without_overflow():
    assert soft_target_factor("sigmoid", 0.8, 0.0, 10**6, 10**6 + 1) == pytest.approx(0)
    assert soft_target_factor("cosine", 0.8, 0.5, 300, 120) == pytest.approx(0.5)


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown schedule 'step'; use one of exp, linear, sigmoid, none"):
        distillation_weight("step", 0, 120)
    with pytest.raises(ValueError, match="use one of sigmoid, exp, linear, cosine, none"):
        soft_target_factor("step", 0.8, 0.5, 0, 120)


def test_schedules_of_the_run_go_through_the_papers_120_epochs_whatever_its_length():
    per_run = TrainSettings(num_epochs=30, schedule_unit="run")
    paper = TrainSettings(num_epochs=120)
    for epoch in range(30):
        assert EpochWeights.of(per_run, epoch) == EpochWeights.of(paper, 4 * epoch)
    assert EpochWeights.of(TrainSettings(num_epochs=30), 29).alpha == pytest.approx(0.764, abs=0.001)
    assert EpochWeights.of(per_run, 29).alpha < 0.01


def test_decays_that_hardly_move_are_named():
    assert find_idle_decays(TrainSettings(num_epochs=30)) == [
        "alpha (sigmoid) only moves from 0.80 to 0.76",
        "beta (sigmoid) only moves from 0.80 to 0.76",
    ]
    assert find_idle_decays(TrainSettings(num_epochs=30, schedule_unit="run")) == []
    assert find_idle_decays(TrainSettings()) == []
    assert find_idle_decays(TrainSettings(num_epochs=30, alpha_decay="none", beta_decay="none")) == []


def test_rates_are_settings():
    assert distillation_weight("linear", 10, 120, linear_rate=0.02) == pytest.approx(0.8)
    assert soft_target_factor("exp", 0.8, 0.0, 2, 120, exp_rate=0.5) == pytest.approx(0.2)
    assert soft_target_factor("sigmoid", 1.0, 0.0, 40, 120, sigmoid_k=400.0) == pytest.approx(
        400 / (400 + math.exp(100 * 40 / 400))
    )

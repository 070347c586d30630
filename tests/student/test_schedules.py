import pytest

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

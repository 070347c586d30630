"""How the weight of the distillation and the share of hard targets change over the epochs (METHOD: "Schedules")."""

import math

EXP_RATE = 0.95  # per epoch, the paper's
_SIGMOID_K = 800.0
_LINEAR_STEP, _LINEAR_FLOOR = 0.01, 0.05  # of the distillation weight


def distillation_weight(kind: str, epoch: int, num_epochs: int, exp_rate: float = EXP_RATE) -> float:
    """The factor w_e of the distillation loss.

    Args:
        kind: exp (the paper's), linear, sigmoid or none (always 1).
        epoch: from 0.
        num_epochs: of the whole training; none of the published kinds depends on it.
        exp_rate: factor of an epoch where kind is exp.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "linear":
        return max(1.0 - _LINEAR_STEP * epoch, _LINEAR_FLOOR)
    return _decay(kind, epoch, "exp, linear, sigmoid, none", exp_rate)


def soft_target_factor(kind: str, start: float, floor: float, epoch: int, num_epochs: int) -> float:
    """alpha or beta of an epoch: it starts at `start` and never falls below `floor`, or below 0 if it starts lower.

    Args:
        kind: sigmoid (the paper's), exp, linear or cosine (both reach the floor at num_epochs), or none.
        floor: the paper's is 0 for alpha and 0.5 for beta.
        epoch: from 0.

    Raises:
        ValueError: an unknown kind.
    """
    floor = floor if start >= floor else 0.0
    progress = min(epoch / num_epochs, 1.0)
    if kind == "linear":
        return start + (floor - start) * progress
    if kind == "cosine":
        return floor + (start - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return max(start * _decay(kind, epoch, "sigmoid, exp, linear, cosine, none"), floor)


def _decay(kind: str, epoch: int, kinds: str, exp_rate: float = EXP_RATE) -> float:
    if kind == "exp":
        return exp_rate**epoch
    if kind == "sigmoid":
        return _SIGMOID_K / (_SIGMOID_K + math.exp(min(100.0 * epoch / _SIGMOID_K, 700.0)))  # exp overflows at 710
    if kind == "none":
        return 1.0
    raise ValueError(f"unknown schedule {kind!r}; use one of {kinds}")

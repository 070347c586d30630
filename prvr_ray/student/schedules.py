"""How the weight of the distillation and the fraction of hard targets change over a training (METHOD: "Schedules")."""

import math

EXP_RATE = 0.95  # per epoch, the paper's
SIGMOID_K = 800.0  # the paper's: the sigmoid falls to a half at epoch 53
LINEAR_RATE = 0.01  # of the distillation weight, per epoch, the paper's
PAPER_EPOCHS = 120  # length of the paper's runs, on which these rates were chosen
_LINEAR_FLOOR = 0.05  # of the distillation weight


def schedule_epoch(epoch: int, num_epochs: int, unit: str) -> tuple[float, int]:
    """The epoch that schedules see, and the number of epochs that they end at.

    Args:
        epoch: from 0.
        unit: epochs (the paper's: rates hold per epoch, however long the run) or run (the run is stretched to the
            paper's 120 epochs, so that a short one goes through the whole decay).
    """
    if unit == "run":
        return epoch / num_epochs * PAPER_EPOCHS, PAPER_EPOCHS
    return epoch, num_epochs


def distillation_weight(
    kind: str,
    epoch: float,
    num_epochs: int,
    exp_rate: float = EXP_RATE,
    linear_rate: float = LINEAR_RATE,
    sigmoid_k: float = SIGMOID_K,
) -> float:
    """The factor w_e of the distillation loss.

    Args:
        kind: exp (the paper's), linear, sigmoid or none (always 1).
        epoch: from 0.
        num_epochs: of the whole training; none of the published kinds depends on it.
        exp_rate: factor of an epoch where kind is exp. linear_rate: what an epoch takes away where kind is linear, down
            to 0.05. sigmoid_k: k in k / (k + exp(100 * epoch / k)).

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "linear":
        return max(1.0 - linear_rate * epoch, _LINEAR_FLOOR)
    return _decay(kind, epoch, "exp, linear, sigmoid, none", exp_rate, sigmoid_k)


def soft_target_factor(
    kind: str,
    start: float,
    floor: float,
    epoch: float,
    num_epochs: int,
    exp_rate: float = EXP_RATE,
    sigmoid_k: float = SIGMOID_K,
) -> float:
    """alpha or beta of an epoch: it starts at `start` and never falls below `floor`, or below 0 if it starts lower.

    Args:
        kind: sigmoid (the paper's), exp, linear or cosine (both reach the floor at num_epochs), or none.
        floor: the paper's is 0 for alpha and 0.5 for beta.
        epoch: from 0.
        exp_rate, sigmoid_k: as for `distillation_weight`.

    Raises:
        ValueError: an unknown kind.
    """
    floor = floor if start >= floor else 0.0
    progress = min(epoch / num_epochs, 1.0)
    if kind == "linear":
        return start + (floor - start) * progress
    if kind == "cosine":
        return floor + (start - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return max(start * _decay(kind, epoch, "sigmoid, exp, linear, cosine, none", exp_rate, sigmoid_k), floor)


def _decay(kind: str, epoch: float, kinds: str, exp_rate: float, sigmoid_k: float) -> float:
    if kind == "exp":
        return exp_rate**epoch
    if kind == "sigmoid":
        return sigmoid_k / (sigmoid_k + math.exp(min(100.0 * epoch / sigmoid_k, 700.0)))  # exp overflows at 710
    if kind == "none":
        return 1.0
    raise ValueError(f"unknown schedule {kind!r}; use one of {kinds}")

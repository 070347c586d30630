"""An objective whose learning curves are formulas: what a search costs and finds, without training."""

import math
import random
import time
from dataclasses import dataclass
from typing import Any

from prvr_ray.config import Config
from prvr_ray.stages.trials import Report
from prvr_ray.tuning.space import Rules

SPACE: Rules = {
    "train.lr": {"loguniform": [1e-5, 1e-2]},
    "train.margin": {"uniform": [0.05, 0.5]},
    "train.distillation_weight": {"loguniform": [0.01, 1.0]},
    "train.alpha": {"uniform": [0.0, 1.0]},
    "train.dropout": {"uniform": [0.0, 0.6]},
    "train.distillation_decay": {"choice": ["exp", "linear", "sigmoid", "none"]},
}
PEAK = 180.0  # SumR
_NOISE = 0.3  # of one epoch's figure
_DECAYS = {"exp": 0.0, "linear": 2.0, "sigmoid": 4.0, "none": 8.0}


def final_sumr(config: Config) -> float:
    """The figure that a configuration comes to: PEAK at one place, less with the square of the distance to it."""
    train = config.train
    distance = (
        9 * math.log10(train.lr / 8e-4) ** 2
        + 60 * (train.margin - 0.15) ** 2
        + 2.4 * math.log10(train.distillation_weight / 0.2) ** 2
        + 3 * (train.alpha - 0.6) ** 2
        + 18 * (train.dropout - 0.3) ** 2
    )
    return PEAK - 10 * distance - _DECAYS[train.distillation_decay]


@dataclass(frozen=True)
class LearningCurve:
    """An objective for `prvr_ray.stages.trials`: rises towards `final_sumr`, sooner with a larger learning rate.

    An epoch takes epoch_s. It fails where the learning rate is above fails_above_lr.
    """

    epoch_s: float = 0.0
    fails_above_lr: float = math.inf

    def __call__(self, config: Config, folder: str, report: Report) -> dict[str, Any]:
        if config.train.lr > self.fails_above_lr:
            raise FloatingPointError(f"triplet is nan at lr {config.train.lr}")
        noise = random.Random(repr(config.train))
        rate = 0.3 * (config.train.lr / 8e-4) ** 0.1
        for epoch in range(1, config.train.num_epochs + 1):
            time.sleep(self.epoch_s)
            report(epoch, final_sumr(config) * (1 - math.exp(-rate * epoch)) + noise.gauss(0, _NOISE))
        return {"test": final_sumr(config) + noise.gauss(0, _NOISE)}

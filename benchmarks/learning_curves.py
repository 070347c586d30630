"""An objective whose learning curves are formulas: what a search costs and finds, without training.

Its functions are published ones, not designed to suit a search. The final SumR of a configuration is the
six-dimensional function of Hartmann (1973) with the constants of Dixon and Szegő (1978), a standard test of optimisers:
several hills, and most of the space far below them. Its coordinates are six settings of the default search space, in
the order of that space, each over its default range. The curve to the final value is `pow3`, one of the families that
Domhan, Springenberg and Hutter (IJCAI 2015) fitted to training runs. The rate of each configuration is random and
independent of its quality, so curves cross and early stopping can stop the wrong trial. Only the noise and the range of
the rates are our own choice.
"""

import math
import random
import time
from dataclasses import dataclass
from typing import Any

from prvr_ray.config import DEFAULT_SPACE, Config
from prvr_ray.stages.trial_runner import Report
from prvr_ray.tuning.space import Point, Rules, point_of

PEAK = 180.0  # SumR at the optimum
OPTIMUM = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
SETTINGS = (
    "train.distillation_weight",
    "train.distillation_temperature",
    "train.alpha",
    "train.margin",
    "train.lr",
    "train.dropout",
)
SPACE: Rules = {path: DEFAULT_SPACE[path] for path in SETTINGS}

_NOISE = 1.0  # SumR, standard deviation of one epoch's figure
_RATES = (0.3, 1.2)
_HEIGHTS = (1.0, 1.2, 3.0, 3.2)
_WIDTHS = (
    (10.0, 3.0, 17.0, 3.5, 1.7, 8.0),
    (0.05, 10.0, 17.0, 0.1, 8.0, 14.0),
    (3.0, 3.5, 1.7, 10.0, 17.0, 8.0),
    (17.0, 8.0, 0.05, 10.0, 0.1, 14.0),
)
_CENTRES = (
    (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
    (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
    (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
    (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
)
_MAXIMUM = 3.32237


def final_sumr(config: Config) -> float:
    """Compute the final SumR of a configuration, without noise: at most PEAK."""
    point = point_of(config, list(SETTINGS))
    place = [_share(path, point[path]) for path in SETTINGS]
    hills = (
        height * math.exp(-sum(w * (x - c) ** 2 for w, x, c in zip(widths, place, centres, strict=True)))
        for height, widths, centres in zip(_HEIGHTS, _WIDTHS, _CENTRES, strict=True)
    )
    return PEAK * sum(hills) / _MAXIMUM


def point_at(place: tuple[float, ...]) -> Point:
    """Map a point of the unit cube to settings."""
    return {path: _value(path, share) for path, share in zip(SETTINGS, place, strict=True)}


@dataclass(frozen=True)
class LearningCurve:
    """An objective for `prvr_ray.stages.trial_runner`: rises to `final_sumr` as pow3, c - a * epoch ** -rate.

    An epoch takes epoch_s. It fails where the learning rate is above fails_above_lr.
    """

    epoch_s: float = 0.0
    fails_above_lr: float = math.inf

    def __call__(self, config: Config, folder: str, report: Report) -> dict[str, Any]:
        if config.train.lr > self.fails_above_lr:
            raise FloatingPointError(f"triplet is nan at lr {config.train.lr}")
        draws = random.Random(repr(config.train))
        final, last, rate = final_sumr(config), config.train.num_epochs, draws.uniform(*_RATES)
        for epoch in range(1, last + 1):
            time.sleep(self.epoch_s)
            risen = (1 - (epoch + 1) ** -rate) / (1 - (last + 1) ** -rate)
            report(epoch, final * risen + draws.gauss(0, _NOISE))
        return {"test": final + draws.gauss(0, _NOISE)}


def _share(path: str, value: float) -> float:
    """Locate a value in the range of its setting: 0 at its low end, 1 at its high end."""
    low, high, scale, _ = _scaled(path)
    return (scale(value) - low) / (high - low)


def _value(path: str, share: float) -> float:
    low, high, _, unscale = _scaled(path)
    return unscale(low + share * (high - low))


def _scaled(path: str) -> tuple[float, float, Any, Any]:
    [(kind, (low, high))] = SPACE[path].items()
    scale, unscale = (math.log, math.exp) if kind == "loguniform" else (float, float)
    return scale(low), scale(high), scale, unscale

"""Which point to try next, and which settings mattered: Optuna behind two names."""

import random
from typing import Literal

import optuna
from optuna.trial import TrialState

from prvr_ray.tuning.space import Point, Space, contains
from prvr_ray.tuning.trial import Trial

Method = Literal["tpe", "random"]

_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


class Sampler:
    """Suggests points and learns from trials, those of an interrupted study included.

    What a trial gets depends on the seed, on its name and on what is known by then, not on what this process drew
    before: a study that resumes does not draw its first points again.

    Args:
        space: the settings to vary.
        method: tpe, or random for a baseline.
        seed: of all draws.
        known: trials that need not run again.
    """

    def __init__(self, space: Space, method: Method, seed: int, known: list[Trial]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._method, self._seed = space, method, seed
        self._asked: dict[str, optuna.trial.Trial] = {}
        self._study = optuna.create_study(direction="maximize")
        for trial in known:
            self.take(trial.name, trial.point)
            self.tell(trial)

    def suggest(self, name: str) -> Point:
        """The point for a trial."""
        seed = random.Random(f"{self._seed}/{name}").randrange(2**32)
        self._study.sampler = _optuna_sampler(self._method, seed)
        self._asked[name] = self._study.ask(self._space)
        return self._asked[name].params

    def take(self, name: str, point: Point) -> Point:
        """Give a trial a point of the user's; one outside the space runs too, but teaches nothing about it."""
        if contains(self._space, point):
            self._study.enqueue_trial(point)
            self._asked[name] = self._study.ask(self._space)
        return point

    def tell(self, trial: Trial) -> None:
        """Learn from a trial that has ended. A stopped one ranks by its last epoch, then by its SumR there."""
        asked = self._asked.pop(trial.name, None)
        if asked is None:
            return
        for epoch, sumr in trial.curve.items():
            asked.report(sumr, epoch)
        self._study.tell(asked, trial.best if trial.state == "finished" else None, _STATES[trial.state])


def rate_importance(space: Space, trials: list[Trial]) -> dict[str, float]:
    """The fraction of the variance of validation SumR that each setting explains, by fANOVA; largest first.

    Stopped trials count with the best figure that they reached. Fewer than two trials, or trials that all reached the
    same, explain nothing: {}.
    """
    usable = [trial for trial in trials if trial.best is not None and contains(space, trial.point)]
    if len({trial.best for trial in usable}) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    for trial in usable:
        study.add_trial(optuna.create_trial(params=trial.point, distributions=dict(space), value=trial.best))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _optuna_sampler(method: Method, seed: int) -> optuna.samplers.BaseSampler:
    if method == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)

"""A study: what it must not change, what its trials show, and the configuration that it concludes on.

tune/<study>/spec.json       what must not change between two calls
             trials/         one folder a trial of the search: configuration, record, checkpoint
             proof/          the same for the confirmation on several seeds
             summary.json    all of it, for the report
             best.yaml       the configuration to use, for `prvr train --config`
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from prvr_ray.collection import declare_spec, preview_spec
from prvr_ray.config import DEFAULT_SPACE, Config
from prvr_ray.runs.run import settings_to_yaml
from prvr_ray.storage import Store, check_name, get_json, open_store, put_json
from prvr_ray.tuning.sampler import rate_importance
from prvr_ray.tuning.seed_comparison import Row, adjust_confidence, choose
from prvr_ray.tuning.space import Point, Rules, Space, apply_point, list_searchable, parse_space, point_of
from prvr_ray.tuning.trial import Trial

BASE_TRIAL = "0000"
# What versions did whose specs lack a setting: its default; and a setting that their space lacks did not vary.
OLDER: dict[str, Any] = {
    **{f"base.{path}": value for path, value in point_of(Config(), list_searchable()).items()},
    **{f"space.{path}": None for path in list_searchable()},
}


def open_study(root: str, study: str) -> Store:
    """The folder of a study, there or not.

    Raises:
        ValueError: a name that is no single folder's.
    """
    check_name("study", study)
    return open_store(root).child(f"tune/{study}")


@dataclass(frozen=True)
class Study:
    """A search: its folder, its base configuration, and its space and first points, parsed once.

    Attributes:
        store: ROOT/tune/<study>.
        base: `student` and `train` are what the space varies around; `tune` says how trials run.
        space: what varies.
        first_points: the base's own values, then the user's points.
    """

    store: Store
    base: Config
    space: Space
    first_points: list[Point]

    @classmethod
    def plan(cls, store: Store, base: Config) -> "Study":
        """Check the settings of a study; nothing is put.

        Raises:
            ValueError: an unusable space or point, or the study exists with another space, scheduler or base; each
                difference is named.
        """
        existing = _existing_space(store)
        if existing and base.tune.space == DEFAULT_SPACE:  # the default of the version that began the study
            base = base.model_copy(update={"tune": base.tune.model_copy(update={"space": existing})})
        space = parse_space(base.tune.space, base)
        study = cls(store, base, space, list_first_points(space, base))
        preview_spec(store, study.spec, older=OLDER)
        return study

    @property
    def spec(self) -> dict[str, Any]:
        """What decides the figures: a study of this name with another spec is another study."""
        settings = self.base.tune
        varied = {"space": settings.space, "scheduler": settings.scheduler}
        return {"kind": "study", **varied, **describe_base(self.base)}

    def declare(self) -> None:
        """Put the spec, or check the one that exists.

        Raises:
            ValueError: see `plan`.
        """
        declare_spec(self.store, self.spec, older=OLDER)

    def conclude(self, trials: dict[str, Trial], rows: list[Row]) -> dict[str, Any]:
        """Put best.yaml and summary.json.

        Args:
            rows: of the confirmation on several seeds; empty where none was asked for.

        Returns:
            The content of summary.json.
        """
        settings = self.base.tune
        if rows:
            best, verdict = choose(rows)
            point = best.point
        else:
            point, verdict = _choose_single_run(trials, self.base.train.num_epochs)
        self.store.put("best.yaml", settings_to_yaml(apply_point(self.base, point), verdict))
        summary = {
            "kind": "study",
            "verdict": verdict,
            "best": point,
            "space": settings.space,
            "states": dict(Counter(trial.state for trial in trials.values())),
            "trials": [trials[name].to_json() for name in sorted(trials)],
            "importance": rate_importance(self.space, list(trials.values())),
            "confidence": settings.confidence,
            "interval_confidence": adjust_confidence(settings.confidence, len(rows) - 1),
            "seeds": list_seeds(self.base),
            "proof": [dataclasses.asdict(row) for row in rows],
        }
        put_json(self.store, "summary.json", summary)
        return summary


def rank_trials(trials: dict[str, Trial], count: int, num_epochs: int) -> list[Trial]:
    """The best trials but the base.

    First those that trained to their end, by their best SumR, then the stopped ones, by how far they came. A trial that
    patience ended early comes after the last stopped trial with a better SumR, and else counts as trained to its end.

    Args:
        num_epochs: of a whole training.
    """
    usable = [trial for name, trial in trials.items() if name != BASE_TRIAL and trial.curve]
    finished = sorted((trial for trial in usable if trial.state == "finished"), key=_best_first)
    stopped = [trial for trial in usable if trial.state == "stopped"]
    stopped.sort(key=lambda trial: (-max(trial.curve), *_best_first(trial)))
    whole, partly = [], list(stopped)
    for trial in finished:
        better = [place for place, other in enumerate(partly) if (other.best or 0.0) > (trial.best or 0.0)]
        if max(trial.curve) < num_epochs and better:
            partly.insert(better[-1] + 1, trial)
        else:
            whole.append(trial)
    return [*whole, *partly][:count]


def _best_first(trial: Trial) -> tuple[float, str]:
    return -(trial.best or 0.0), trial.name


def list_first_points(space: Space, base: Config) -> list[Point]:
    """The base's own values, then the user's points, completed by the base's.

    Raises:
        ValueError: a point that the configuration refuses or that names what the space does not, or too few trials.
    """
    own = point_of(base, list(space))
    for point in base.tune.points:
        strange = sorted(set(point) - set(space))
        if strange:
            raise ValueError(f"tune.points names {', '.join(strange)}, which tune.space does not: {', '.join(space)}")
    # As the configuration reads them: YAML takes 5e-4 for a text.
    points = [own, *(point_of(apply_point(base, {**own, **point}), list(own)) for point in base.tune.points)]
    if base.tune.num_trials < len(points):
        raise ValueError(
            f"tune.num_trials={base.tune.num_trials} has no room for the base and tune.points, {len(points)} in all"
        )
    return points


def check_ablation(store: Store, base: Config) -> dict[str, Any]:
    """The spec of an ablation.

    Raises:
        ValueError: there is one at this place with another base; each difference is named.
    """
    spec = {"kind": "ablation", **describe_base(base)}
    preview_spec(store, spec, older=OLDER)
    return spec


def _existing_space(store: Store) -> Rules | None:
    try:
        space: Rules | None = get_json(store, "spec.json").get("space")
    except FileNotFoundError:
        return None
    return space


def describe_base(base: Config) -> dict[str, Any]:
    """The settings of the base configuration that decide the figures; others need another name."""
    fixed = ("num_epochs", "patience", "seed", "train_split", "validation_split")
    own = point_of(base, [*list_searchable(), *(f"train.{name}" for name in fixed)])
    return {"base": own, "test_split": base.tune.test_split}


def list_seeds(base: Config) -> list[int]:
    """The seeds of a confirmation or an ablation; the search has seen none of them."""
    return [base.train.seed + 1 + index for index in range(base.tune.num_seeds)]


def name_trial(number: int) -> str:
    """`0007`, the folder of a trial of the search."""
    return f"{number:04d}"


def _choose_single_run(trials: dict[str, Trial], num_epochs: int) -> tuple[Point, str]:
    """The point of the best single run, which may be luck, and a sentence that says so."""
    base, tops = trials.get(BASE_TRIAL), rank_trials(trials, 1, num_epochs)
    if not tops:
        return Point(), "No trial but the base could be trained; this is the base. Nothing was confirmed."
    best = tops[0]
    if base and base.best is not None and base.best >= (best.best or 0.0):
        return Point(), (
            f"No single run was better than the base's, SumR {base.best:.1f}: "
            f"the next, trial-{best.name}, reached {best.best:.1f}. Nothing was confirmed on several seeds."
        )
    return best.point, (
        f"trial-{best.name} had the best single run, SumR {best.best:.1f}. Nothing was confirmed on several seeds."
    )

"""A study: the search for a configuration, and its proof on seeds. What a trial does is the caller's objective.

tune/<study>/spec.json       what must not change between two calls
             trials/         one folder a trial of the search: configuration, record, checkpoint
             proof/          the same for the runs on seeds
             summary.json    all of it, for the report
             best.yaml       the configuration to use, for `prvr train --config`
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import yaml

from prvr_ray.collection import declare_spec
from prvr_ray.config import Config
from prvr_ray.stages.progress import Steps
from prvr_ray.stages.resources import Worker
from prvr_ray.stages.schedulers import make_scheduler
from prvr_ray.stages.trial_folder import TrialFolder
from prvr_ray.stages.trials import Objective, run_trials
from prvr_ray.storage import Store, check_name, open_store, put_json
from prvr_ray.tuning.comparison import BASE, Row, choose, compare, run_name, simultaneous
from prvr_ray.tuning.sampler import Sampler, importance
from prvr_ray.tuning.space import Point, Space, apply_point, parse_space, point_of, searchable
from prvr_ray.tuning.trial import Trial

BASE_TRIAL = "0000"


@dataclass(frozen=True)
class Runner:
    """How trials are run: what each does, on what, how many at a time, and the configuration around them."""

    base: Config
    objective: Objective
    worker: Worker
    max_concurrent: int = 0


def open_study(root: str, study: str) -> Store:
    """The folder of a study, there or not.

    Raises:
        ValueError: a name that is no single folder's.
    """
    check_name("study", study)
    return open_store(root).child(f"tune/{study}")


def declare(store: Store, base: Config) -> None:
    """Begin the study at tune/<study>, or go on with it.

    Raises:
        ValueError: the study stands already with another space, scheduler or base; each difference is named.
    """
    settings = base.tune
    declare_spec(store, {"kind": "study", "space": settings.space, "scheduler": settings.scheduler, **identity(base)})


def search(store: Store, runner: Runner) -> dict[str, Trial]:
    """Run the search, or what is left of it.

    Returns:
        The trials, by name.

    Raises:
        ValueError: an unusable space or point.
    """
    base, settings = runner.base, runner.base.tune
    space = parse_space(settings.space, base)
    fixed = first_points(space, base)
    folder = TrialFolder(store.child("trials"))
    ended, interrupted = folder.ended(), folder.interrupted(list(space))
    sampler = Sampler(space, settings.sampler, settings.seed, list(ended.values()))
    known = [*interrupted.values(), *(trial.point for trial in ended.values())]
    waiting = iter([point for point in fixed if point not in known])

    def suggest(name: str) -> Point:
        point = interrupted.get(name) or next(waiting, None)
        return sampler.take(name, point) if point else sampler.suggest(name)

    names = [name for name in map(_numbered, range(settings.num_trials)) if name not in ended]
    with Steps("tune", len(names), "trials") as steps:
        run_trials(
            runner.objective,
            base=base,
            folder=folder,
            names=names,
            suggest=suggest,
            worker=runner.worker,
            steps=steps,
            scheduler=make_scheduler(base, space, ended.values()),
            max_concurrent=runner.max_concurrent,
            on_end=sampler.tell,
        )
    return folder.ended()


def run_on_seeds(store: Store, runner: Runner, variants: dict[str, Point], what: str) -> dict[str, Trial]:
    """Train every variant on every seed to its end, or those that have not been; the runs by name."""
    folder = TrialFolder(store)
    ended = folder.ended()
    points = {
        run_name(name, seed): {**point, "train.seed": seed}
        for seed in seeds(runner.base)
        for name, point in variants.items()
    }
    names = [name for name in points if name not in ended]
    with Steps(what, len(names), "runs") as steps:
        run_trials(
            runner.objective,
            base=runner.base,
            folder=folder,
            names=names,
            suggest=points.__getitem__,
            worker=runner.worker,
            steps=steps,
            max_concurrent=runner.max_concurrent,
        )
    return folder.ended()


def prove(store: Store, runner: Runner, trials: dict[str, Trial]) -> list[Row]:
    """Train the base and the best trials anew on seeds; the base's row first."""
    settings = runner.base.tune
    candidates = {f"trial-{trial.name}": trial.point for trial in best_trials(trials, settings.confirm_top)}
    variants = {BASE: Point(), **candidates}
    runs = run_on_seeds(store.child("proof"), runner, variants, "proof")
    confidence = simultaneous(settings.confidence, len(candidates))
    return compare(variants, seeds(runner.base), runs, BASE, confidence)


def conclude(store: Store, base: Config, trials: dict[str, Trial], rows: list[Row]) -> dict[str, Any]:
    """Put best.yaml and summary.json.

    Args:
        rows: of `prove`; empty where no proof was asked for.

    Returns:
        The summary: what stands in summary.json.
    """
    settings = base.tune
    if rows:
        best, verdict = choose(rows)
        point = best.point
    else:
        point, verdict = _unproven(trials)
    store.put("best.yaml", _best_yaml(apply_point(base, point), verdict))
    space = parse_space(settings.space, base)
    summary = {
        "kind": "study",
        "verdict": verdict,
        "best": point,
        "space": settings.space,
        "states": dict(Counter(trial.state for trial in trials.values())),
        "trials": [trials[name].to_json() for name in sorted(trials)],
        "importance": importance(space, list(trials.values())),
        "confidence": settings.confidence,
        "interval_confidence": simultaneous(settings.confidence, len(rows) - 1),
        "seeds": seeds(base),
        "proof": [dataclasses.asdict(row) for row in rows],
    }
    put_json(store, "summary.json", summary)
    return summary


def best_trials(trials: dict[str, Trial], count: int) -> list[Trial]:
    """The best trials but the base: those that finished, by their figure, then the stopped, by how far they came."""

    def rank(trial: Trial) -> tuple[bool, int, float, str]:
        is_stopped = trial.state != "finished"
        return is_stopped, -max(trial.curve) if is_stopped else 0, -(trial.best or 0.0), trial.name

    usable = [trial for name, trial in trials.items() if name != BASE_TRIAL and trial.state != "failed"]
    return sorted((trial for trial in usable if trial.curve), key=rank)[:count]


def first_points(space: Space, base: Config) -> list[Point]:
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


def identity(base: Config) -> dict[str, Any]:
    """What of the base configuration decides the figures: another one needs another name."""
    fixed = ("num_epochs", "patience", "seed", "train_split", "validation_split")
    own = point_of(base, [*searchable(), *(f"train.{name}" for name in fixed)])
    return {"base": own, "test_split": base.tune.test_split}


def seeds(base: Config) -> list[int]:
    """The seeds of proofs: none is the one that the search saw."""
    return [base.train.seed + 1 + index for index in range(base.tune.num_seeds)]


def _numbered(number: int) -> str:
    return f"{number:04d}"


def _unproven(trials: dict[str, Trial]) -> tuple[Point, str]:
    """The best single run, which may be luck."""
    base, tops = trials.get(BASE_TRIAL), best_trials(trials, 1)
    if not tops:
        return Point(), "No trial but the base could be trained; this is the base. Nothing was proved."
    best = tops[0]
    if base and base.best is not None and base.best >= (best.best or 0.0):
        return Point(), (
            f"No single run was better than the base's, SumR {base.best:.1f}: "
            f"the next, trial-{best.name}, came to {best.best:.1f}. Nothing was proved."
        )
    return best.point, f"trial-{best.name} had the best single run, SumR {best.best:.1f}. Nothing was proved."


def _best_yaml(config: Config, verdict: str) -> bytes:
    values = config.model_dump(include={"student", "train"})
    comment = " ".join(verdict.split())  # reasons of failures may have lines
    return f"# {comment}\n{yaml.safe_dump(values, sort_keys=False)}".encode()

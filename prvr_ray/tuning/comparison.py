"""Configurations side by side, each trained on the same seeds: the proof of a search, and the questions of an ablation.

Owns the tables and what is concluded from them; the runs come as trials, named by `run_name`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prvr_ray.tuning.space import Point
from prvr_ray.tuning.statistics import Difference, Spread, paired_difference, spread
from prvr_ray.tuning.trial import Trial

BASE = "base"


@dataclass(frozen=True)
class Row:
    """One configuration: SumR over its seeds on both splits, and how it differs from the reference on the same seeds.

    The checkpoint of each run is its best epoch on the validation split. `test` is None without such a split; a
    difference is None for the reference itself and where no pair of runs succeeded. failures: reasons, one a run.
    """

    name: str
    point: Point
    validation: Spread | None
    test: Spread | None
    validation_gain: Difference | None
    test_gain: Difference | None
    failures: list[str]


def run_name(variant: str, seed: int) -> str:
    """The trial that trains a variant on a seed."""
    return f"{variant}-seed{seed}"


def compare(
    variants: Mapping[str, Point], seeds: list[int], runs: Mapping[str, Trial], reference: str, confidence: float
) -> list[Row]:
    """The rows of some variants, in their order.

    Args:
        variants: name -> point; the reference is one of them.
        runs: trials by `run_name`; those that failed count as missing.
        confidence: of each row's intervals.
    """
    validation = {name: _figures(name, seeds, runs, "validation") for name in variants}
    test = {name: _figures(name, seeds, runs, "test") for name in variants}

    def gain(figures: dict[str, dict[int, float]], name: str) -> Difference | None:
        return None if name == reference else paired_difference(figures[name], figures[reference], confidence)

    return [
        Row(
            name,
            dict(point),
            spread(list(validation[name].values())),
            spread(list(test[name].values())),
            gain(validation, name),
            gain(test, name),
            [str(run.reason) for seed in seeds if (run := runs[run_name(name, seed)]).state == "failed"],
        )
        for name, point in variants.items()
    ]


def simultaneous(confidence: float, num_candidates: int) -> float:
    """The confidence of each of several intervals, so that all hold together with `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / max(num_candidates, 1)


def choose(rows: list[Row]) -> tuple[Row, str]:
    """The row to use, and why, in one sentence.

    A candidate wins if its whole interval on the validation split lies above the base; of several, the best mean. The
    test split chooses nothing.

    Args:
        rows: the base first, then the candidates.
    """
    base, *candidates = rows
    if base.validation is None:
        return base, f"No run of the base configuration succeeded, so nothing was compared: {base.failures[0]}"
    compared = [(row.validation_gain, row) for row in candidates if row.validation_gain]
    if not compared:
        return base, "Nothing was compared with the base: no candidate finished."
    winners = [(gain, row) for gain, row in compared if gain.is_gain]
    gain, best = max(winners or compared, key=lambda pair: pair[0].mean)
    if winners:
        return best, f"{best.name} beats the base by {describe(gain)} on the validation split."
    return base, (
        "Nothing beat the base beyond run-to-run spread: "
        f"the best candidate, {best.name}, differs by {describe(gain)} on the validation split."
    )


def describe(difference: Difference) -> str:
    """`+1.3 SumR (interval -0.2 to +2.8, 5 seeds)`."""
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.1f} SumR (one seed: no interval)"
    interval = f"{difference.low:+.1f} to {difference.high:+.1f}"
    return f"{difference.mean:+.1f} SumR (interval {interval}, {difference.count} seeds)"


def _figures(variant: str, seeds: list[int], runs: Mapping[str, Trial], split: str) -> dict[int, float]:
    """Seed -> SumR of the runs that finished."""
    finished = {seed: run for seed in seeds if (run := runs[run_name(variant, seed)]).state == "finished"}
    figures = {seed: run.best if split == "validation" else run.outcome.get("test") for seed, run in finished.items()}
    return {seed: sumr for seed, sumr in figures.items() if sumr is not None}

"""Configurations side by side, each trained on the same seeds: a search's confirmation, an ablation's questions.

Owns the tables and what is concluded from them; the runs come as trials, named by `name_run`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from prvr_ray.tuning.query_ranks import QuerySumr
from prvr_ray.tuning.space import Point
from prvr_ray.tuning.statistics import Difference, Spread, compare_pairs, compare_queries, measure_spread
from prvr_ray.tuning.trial import Trial

BASE = "base"


Queries = Callable[[str, str], QuerySumr | None]


def _no_queries(run: str, split: str) -> QuerySumr | None:
    return None


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


def name_run(variant: str, seed: int) -> str:
    """The trial that trains a variant on a seed."""
    return f"{variant}-seed{seed}"


def compare(
    variants: Mapping[str, Point],
    seeds: list[int],
    runs: Mapping[str, Trial],
    reference: str,
    confidence: float,
    queries: Queries = _no_queries,
) -> list[Row]:
    """The rows of some variants, in their order.

    Args:
        variants: name -> point; the reference is one of them.
        runs: trials by `name_run`; those that failed count as missing.
        confidence: of each row's intervals.
        queries: `name_run` and split -> each query's SumR; None where the run kept none. Where both runs of every
            pair kept them, intervals are over seeds and videos, else over seeds.
    """
    figures = {
        split: {name: _finished_sumr(name, seeds, runs, split) for name in variants} for split in ("validation", "test")
    }

    def gain(split: str, name: str) -> Difference | None:
        if name == reference:
            return None
        ours, base = figures[split][name], figures[split][reference]
        paired = [(name_run(name, seed), name_run(reference, seed)) for seed in sorted(ours.keys() & base.keys())]
        kept = [(queries(run, split), queries(of_base, split)) for run, of_base in paired]
        return _compare_kept(kept, confidence) or compare_pairs(ours, base, confidence)

    return [
        Row(
            name,
            dict(point),
            measure_spread(list(figures["validation"][name].values())),
            measure_spread(list(figures["test"][name].values())),
            gain("validation", name),
            gain("test", name),
            [str(run.reason) for seed in seeds if (run := runs[name_run(name, seed)]).state == "failed"],
        )
        for name, point in variants.items()
    ]


def _compare_kept(kept: list[tuple[QuerySumr | None, QuerySumr | None]], confidence: float) -> Difference | None:
    """The difference over seeds and videos; None where a run kept no queries, or others than the rest."""
    pairs = [(ours, base) for ours, base in kept if ours and base]
    if not pairs or len(pairs) < len(kept):
        return None
    first = pairs[0][0]
    if any(run.query_ids != first.query_ids for pair in pairs for run in pair):
        return None
    return compare_queries(np.stack([ours.sumr_Q - base.sumr_Q for ours, base in pairs]), first.video_ids, confidence)


def adjust_confidence(confidence: float, num_candidates: int) -> float:
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
    over = f"{difference.count} seeds" + (f" x {difference.num_videos} videos" if difference.num_videos else "")
    return f"{difference.mean:+.1f} SumR (interval {interval}, {over})"


def _finished_sumr(variant: str, seeds: list[int], runs: Mapping[str, Trial], split: str) -> dict[int, float]:
    """Seed -> SumR of the runs that finished."""
    finished = {seed: run for seed in seeds if (run := runs[name_run(variant, seed)]).state == "finished"}
    figures = {seed: run.best if split == "validation" else run.outcome.get("test") for seed, run in finished.items()}
    return {seed: sumr for seed, sumr in figures.items() if sumr is not None}

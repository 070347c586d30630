"""The table of the proof against a computation by hand, and what is concluded from it."""

from pathlib import Path

import numpy as np
import pytest

from prvr_ray.storage import open_store
from prvr_ray.tuning.query_ranks import QuerySumr, put_ranks, read_sumr
from prvr_ray.tuning.seed_comparison import Row, adjust_confidence, choose, compare, name_run
from prvr_ray.tuning.statistics import Difference, Spread
from prvr_ray.tuning.trial import Trial

SEEDS = [11, 12, 13]
BASE, CANDIDATE = {}, {"train.lr": 1e-3}
# validation: base 100 104 108, candidate 103 106 112 -> differences 3 2 4: mean 3, sd 1, error 0.5773503;
# t(0.975, 2) = 4.302653 from a printed table -> half width 2.484138.
VALIDATION = {"base": [100.0, 104.0, 108.0], "trial-0007": [103.0, 106.0, 112.0]}
TEST = {"base": [90.0, 90.0, 93.0], "trial-0007": [91.0, 89.0, 96.0]}


def run(variant: str, seed: int, validation: float, test: float | None) -> Trial:
    curve = {1: validation - 50, 2: validation, 3: validation - 1}
    return Trial(name_run(variant, seed), {}, "finished", curve, 1.0, None, {} if test is None else {"test": test})


def runs() -> dict[str, Trial]:
    made = [
        run(variant, seed, validation, test)
        for variant in VALIDATION
        for seed, validation, test in zip(SEEDS, VALIDATION[variant], TEST[variant], strict=True)
    ]
    return {trial.name: trial for trial in made}


def rows_of(trials: dict[str, Trial]) -> list[Row]:
    return compare({"base": BASE, "trial-0007": CANDIDATE}, SEEDS, trials, "base", 0.95)


def test_the_table_equals_the_hand_computation() -> None:
    base, candidate = rows_of(runs())
    assert base.validation == Spread(3, 104.0, 4.0)
    assert candidate.validation == Spread(3, 107.0, pytest.approx(4.5825757))
    assert base.validation_gain is None
    assert candidate.validation_gain == Difference(
        3, pytest.approx(3.0), pytest.approx(3 - 2.484138, abs=1e-5), pytest.approx(3 + 2.484138, abs=1e-5)
    )
    # test: differences 1 -1 3: mean 1, sd 2, half width 4.302653 * 2 / sqrt(3) = 4.968276
    assert candidate.test_gain == Difference(
        3, pytest.approx(1.0), pytest.approx(1 - 4.968276, abs=1e-5), pytest.approx(1 + 4.968276, abs=1e-5)
    )
    assert candidate.test == Spread(3, 92.0, pytest.approx(3.6055513))
    assert candidate.failures == []


def test_a_failed_run_is_named_and_its_seed_not_paired() -> None:
    trials = runs()
    trials["trial-0007-seed12"] = Trial("trial-0007-seed12", {}, "failed", {1: 999.0}, 1.0, "nan at step 3")
    _, candidate = rows_of(trials)
    assert candidate.failures == ["nan at step 3"]
    assert candidate.validation == Spread(2, 107.5, pytest.approx(6.3639610))
    assert candidate.validation_gain is not None
    assert (candidate.validation_gain.count, candidate.validation_gain.mean) == (2, pytest.approx(3.5))


def test_without_a_test_split_its_columns_are_empty() -> None:
    trials = {name: run(*name.rsplit("-seed", 1), 100.0, None) for name in runs()}  # type: ignore[arg-type]
    base, candidate = rows_of(trials)
    assert base.test is None
    assert candidate.test is None
    assert candidate.test_gain is None


def gained(name: str, low: float, high: float) -> Row:
    return Row(name, {"at": name}, Spread(3, 100.0, 1.0), None, Difference(3, (low + high) / 2, low, high), None, [])


def plain(name: str = "base", failures: tuple[str, ...] = ()) -> Row:
    return Row(name, {}, None if failures else Spread(3, 100.0, 1.0), None, None, None, list(failures))


def test_the_best_of_those_surely_better_is_chosen() -> None:
    row, verdict = choose([plain(), gained("a", -1, 9), gained("b", 0.1, 3.9), gained("c", 0.5, 1.5)])
    assert row.name == "b"
    assert verdict == "b beats the base by +2.0 SumR (interval +0.1 to +3.9, 3 seeds) on the validation split."


def test_luck_does_not_beat_the_base_and_the_verdict_says_so() -> None:
    row, verdict = choose([plain(), gained("a", -1, 9), gained("b", -3, 5)])
    assert row.name == "base"
    assert verdict.startswith("Nothing beat the base beyond run-to-run spread: the best candidate, a, differs by +4.0")


def test_a_failing_base_or_failing_candidates_are_said() -> None:
    row, verdict = choose([plain(failures=("nan",)), gained("a", 1, 2)])
    assert row.name == "base"
    assert "No run of the base configuration succeeded" in verdict
    assert "nan" in verdict
    row, verdict = choose([plain(), plain("a", failures=("nan",))])
    assert row.name == "base"
    assert "no candidate finished" in verdict


def test_several_intervals_hold_together() -> None:
    assert adjust_confidence(0.95, 1) == pytest.approx(0.95)
    assert adjust_confidence(0.95, 5) == pytest.approx(0.99)
    assert adjust_confidence(0.95, 0) == pytest.approx(0.95)


def test_intervals_are_over_videos_too_where_runs_kept_their_queries() -> None:
    """Every seed agrees on validation; the queries of one of three videos make all of the difference."""

    def queries(run: str, split: str) -> QuerySumr | None:
        sumr = [100.0, 100.0, 103.0] if run.startswith("trial") and split == "validation" else [100.0] * 3
        return QuerySumr(["p", "q", "r"], ["a", "b", "c"], np.array(sumr))

    _, candidate = compare({"base": BASE, "trial-0007": CANDIDATE}, SEEDS, runs(), "base", 0.95, queries)
    assert candidate.validation_gain is not None
    assert (candidate.validation_gain.mean, candidate.validation_gain.num_videos) == (1.0, 3)
    assert not candidate.validation_gain.is_gain
    row, verdict = choose([plain(), candidate])
    assert row.name == "base"
    assert "3 seeds x 3 videos)" in verdict


def test_a_run_without_kept_queries_leaves_intervals_over_seeds() -> None:
    def queries(run: str, split: str) -> QuerySumr | None:
        return None if run == "base-seed12" else QuerySumr(["p"], ["a"], np.array([1.0]))

    _, candidate = compare({"base": BASE, "trial-0007": CANDIDATE}, SEEDS, runs(), "base", 0.95, queries)
    assert candidate.validation_gain == rows_of(runs())[1].validation_gain


def test_kept_ranks_come_back_as_each_querys_own_sumr(tmp_path: Path) -> None:
    put_ranks(open_store(tmp_path), "test", ["q", "p"], ["b", "a"], [np.array([7]), np.array([1, 12])])
    found = read_sumr(open_store(tmp_path), "test")
    assert found is not None
    assert (found.query_ids, found.video_ids) == (["p", "q"], ["a", "b"])
    # p: R@1 1 of 1, R@5 1 of 2, R@10 1 of 2, R@100 both. q: found among the first 10.
    assert found.sumr_Q.tolist() == [100 + 50 + 50 + 100, 200]
    assert read_sumr(open_store(tmp_path), "validation") is None

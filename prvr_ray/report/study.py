"""The sections about a search study and about an ablation, from the summaries that these leave in tune/."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prvr_ray.report.figures import Chart, Dimension, draw_bars, draw_endings, draw_parallel
from prvr_ray.report.page import Block, Cell, Figure, Figures, Section, Table, Text
from prvr_ray.report.wording import count, interval, signed, spread

ANCHOR, TITLE = "study", "Search study"
ABLATION_ANCHOR, ABLATION_TITLE = "ablation", "What each part of the method brings"
_MAX_DIMENSIONS = 6
_MAX_BARS = 10
_ENOUGH = 3  # trials a setting, before its importance means much
_NUM_STRONG = 3
Summary = Mapping[str, Any]
Trials = Sequence[Mapping[str, Any]]


def study_section(name: str, summary: Summary) -> Section:
    """Verdict and proof, what mattered, what was tried, what was stopped.

    Args:
        summary: tune/<study>/summary.json.
    """
    states = ", ".join(f"{number} {state}" for state, number in sorted(summary["states"].items()))
    blocks: list[Block] = [
        Text(f"{summary['verdict']} Study {name}: {count(len(summary['trials']), 'trial')}, {states}.")
    ]
    if summary["proof"]:
        blocks.append(_seed_table(summary["proof"], summary["seeds"], "base"))
    trials = [trial for trial in summary["trials"] if trial["curve"]]
    figures = [_curve_figure(trials)] if trials else []
    if summary["importance"]:
        figures.append(_importance_figure(summary["importance"], len(trials)))
    finished = [trial for trial in trials if trial["state"] == "finished"]
    if len(finished) > 1:
        figures.append(_parallel_figure(finished, summary))
    return Section(ANCHOR, TITLE, [*blocks, Figures(figures)])


def ablation_section(summary: Summary) -> Section:
    """The questions of an ablation, each with its finding and its variants.

    Args:
        summary: tune/<study>/summary.json.
    """
    blocks: list[Block] = []
    for question in summary["questions"]:
        table = _seed_table(question["rows"], summary["seeds"], question["reference"])
        blocks += [Text(question["finding"]), table]
    return Section(ABLATION_ANCHOR, ABLATION_TITLE, blocks)


def _seed_table(configurations: Sequence[Mapping[str, Any]], seeds: Sequence[int], reference: str) -> Table:
    """Configurations that were trained on several seeds, each with its paired difference to the reference."""
    rows = [
        [
            row["name"],
            spread(row["validation"]),
            _difference(row["validation_gain"]),
            spread(row["test"]),
            _difference(row["test_gain"]),
        ]
        for row in configurations
    ]
    caption = f"SumR over {count(len(seeds), 'seed')}, mean ± standard deviation; differences are paired by seed"
    columns = ["configuration", "validation", f"against {reference}", "test", f"against {reference}"]
    return Table(caption, columns, rows, strong=reference)


def _difference(difference: Mapping[str, Any] | None) -> str | Cell:
    if difference is None:
        return "–"
    if difference["low"] is None:
        return signed(difference["mean"])
    return Cell(signed(difference["mean"]), interval(difference["low"], difference["high"]))


def _curve_figure(trials: Trials) -> Figure:
    by_state: dict[str, list[tuple[list[float], list[float]]]] = {"finished": [], "stopped": [], "failed": []}
    for trial in trials:
        epochs = sorted(trial["curve"], key=int)
        by_state[trial["state"]].append(([int(epoch) for epoch in epochs], [trial["curve"][epoch] for epoch in epochs]))
    caption = "Validation SumR of every trial. A cross is where the scheduler stopped one that fell behind."
    return Figure(
        draw_endings({state: curves for state, curves in by_state.items() if curves}, Chart("epoch", "SumR")),
        caption,
        f"Learning curves of {len(trials)} trials",
    )


def _importance_figure(importance: Mapping[str, float], num_trials: int) -> Figure:
    top = sorted(importance, key=lambda path: -importance[path])[:_MAX_BARS]
    doubt = ", too few to rely on" if num_trials < _ENOUGH * len(importance) else ""
    return Figure(
        draw_bars({path: importance[path] for path in top}, "share of the variance that it explains"),
        f"How much each setting mattered for SumR, most of all {top[0]}; from {count(num_trials, 'trial')}{doubt}.",
        f"Bar chart of the importance of {len(top)} settings",
    )


def _parallel_figure(finished: Trials, summary: Summary) -> Figure:
    importance = summary["importance"] or dict.fromkeys(summary["space"], 0.0)
    paths = sorted(importance, key=lambda path: -importance[path])[: _MAX_DIMENSIONS - 1]
    dimensions = [
        _dimension(path, [trial["point"][path] for trial in finished], summary["space"][path]) for path in paths
    ]
    best = [trial["best"] for trial in finished]
    dimensions.append(_dimension("SumR", best, {"uniform": [min(best), max(best)]}))
    strong = sorted(range(len(best)), key=lambda number: -best[number])[:_NUM_STRONG]
    return Figure(
        draw_parallel(dimensions, strong),
        f"Finished trials across the settings that mattered; the best {len(strong)} stand out.",
        "Parallel coordinates of the finished trials",
    )


def _dimension(path: str, values: Sequence[Any], rule: Mapping[str, Sequence[Any]]) -> Dimension:
    """Where values stand between the bounds of a rule of the search space."""
    [(kind, bounds)] = rule.items()
    label = path.rpartition(".")[2].replace("_", " ")
    if kind == "choice":
        steps = max(len(bounds) - 1, 1)
        ticks = {str(choice): number / steps for number, choice in enumerate(bounds)}
        return Dimension(label, [ticks[str(value)] for value in values], ticks)
    scale = math.log if kind == "loguniform" else float
    low, high = scale(bounds[0]), scale(bounds[1])
    places = [(scale(value) - low) / (high - low or 1) for value in values]
    return Dimension(label, places, {f"{bounds[0]:.4g}": 0.0, f"{bounds[1]:.4g}": 1.0})

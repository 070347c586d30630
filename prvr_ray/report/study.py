"""The sections about a search study and about an ablation, built from their summaries in tune/."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prvr_ray.report.figures import Chart, Dimension, draw_bars, draw_endings, draw_parallel
from prvr_ray.report.page import Block, Cell, Figure, Figures, Section, Table, Text
from prvr_ray.report.wording import count, seed_cells

ANCHOR, TITLE = "study", "Search study"
ABLATION_ANCHOR, ABLATION_TITLE = "ablation", "What each part of the method brings"
_MAX_DIMENSIONS = 6
_MAX_BARS = 10
_ENOUGH = 3  # trials per setting; with fewer, importance means little
_NUM_STRONG = 3
Summary = Mapping[str, Any]
Trials = Sequence[Mapping[str, Any]]


def study_section(name: str, summary: Summary) -> Section:
    """Build the section: verdict, confirmation, importance of the settings, trials.

    Args:
        summary: tune/<study>/summary.json.
    """
    states = ", ".join(f"{number} {state}" for state, number in sorted(summary["states"].items()))
    blocks: list[Block] = [
        Text(f"{summary['verdict']} Study {name}: {count(len(summary['trials']), 'trial')}, {states}.")
    ]
    if summary["proof"]:
        blocks.append(_study_table(summary["proof"], summary["seeds"], "base"))
    trials = [trial for trial in summary["trials"] if trial["curve"]]
    figures = [_curve_figure(trials)] if trials else []
    if summary["importance"]:
        figures.append(_importance_figure(summary["importance"], len(trials)))
    finished = [trial for trial in trials if trial["state"] == "finished"]
    if len(finished) > 1:
        figures.append(_parallel_figure(finished, summary))
    return Section(ANCHOR, TITLE, [*blocks, Figures(figures)])


def ablation_section(summary: Summary) -> Section:
    """Build the section: each question with its finding and a table of its variants.

    Args:
        summary: tune/<study>/summary.json.
    """
    blocks: list[Block] = []
    for question in summary["questions"]:
        table = _study_table(question["rows"], summary["seeds"], question["reference"])
        blocks += [Text(question["finding"]), table]
    return Section(ABLATION_ANCHOR, ABLATION_TITLE, blocks)


def _study_table(configurations: Sequence[Mapping[str, Any]], seeds: Sequence[int], reference: str) -> Table:
    """Make a table of configurations trained on several seeds, each with its paired difference to the reference."""
    rows = [
        [
            row["name"],
            *(Cell(text, note) if note else text for text, note in seed_cells(row, ["validation", "test"])),
        ]
        for row in configurations
    ]
    caption = f"SumR over {count(len(seeds), 'seed')}, mean ± standard deviation; differences are paired"
    columns = ["configuration", "validation", f"against {reference}", "test", f"against {reference}"]
    return Table(caption, columns, rows, strong=reference)


def _curve_figure(trials: Trials) -> Figure:
    by_state: dict[str, list[tuple[list[float], list[float]]]] = {"finished": [], "stopped": [], "failed": []}
    for trial in trials:
        epochs = sorted(trial["curve"], key=int)
        by_state[trial["state"]].append(([int(epoch) for epoch in epochs], [trial["curve"][epoch] for epoch in epochs]))
    caption = "Validation SumR of every trial. A cross marks a trial that the scheduler stopped."
    return Figure(
        draw_endings({state: curves for state, curves in by_state.items() if curves}, Chart("epoch", "SumR")),
        caption,
        f"Learning curves of {len(trials)} trials",
    )


def _importance_figure(importance: Mapping[str, float], num_trials: int) -> Figure:
    top = sorted(importance, key=lambda path: -importance[path])[:_MAX_BARS]
    doubt = ", too few to rely on" if num_trials < _ENOUGH * len(importance) else ""
    return Figure(
        draw_bars({path: importance[path] for path in top}, "fraction of the variance explained"),
        f"Importance of each setting for SumR, {top[0]} first; from {count(num_trials, 'trial')}{doubt}.",
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
        f"Finished trials across the most important settings; the best {len(strong)} are highlighted.",
        "Parallel coordinates of the finished trials",
    )


def _dimension(path: str, values: Sequence[Any], rule: Mapping[str, Sequence[Any]]) -> Dimension:
    """Place values between the bounds of their setting in the search space: 0 at the lower bound, 1 at the upper."""
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

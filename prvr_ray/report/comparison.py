"""The section that compares runs side by side: their figures, paired differences and settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from prvr_ray.report.evaluation import Bootstrap, Evaluation, gap
from prvr_ray.report.figures import draw_intervals
from prvr_ray.report.page import Figure, Figures, Section, Table, Text
from prvr_ray.report.wording import signed
from prvr_ray.retrieval.metrics import summarize

ANCHOR, TITLE = "comparison", "Runs side by side"
_COLUMNS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "r100": "R@100", "sumr": "SumR"}
Settings = Mapping[str, Mapping[str, Any]]


def comparison_section(evaluations: Sequence[Evaluation], settings: Mapping[str, Settings], how: Bootstrap) -> Section:
    """Build the section.

    Args:
        evaluations: two or more, of one split and protocol; the first is the reference for the others.
        settings: run -> its settings, section -> field -> value.
    """
    reference, *others = evaluations
    gaps = {
        other.run: gap(other, reference, ("fused", "fused"), (f"Run {other.run}", f"run {reference.run}"), how)
        for other in others
    }
    said = ". ".join(str(found) for found in gaps.values())
    rows = [[run.run, *_figures(run), signed(gaps[run.run].mean) if run.run in gaps else "–"] for run in evaluations]
    intervals = {run: (found.mean, found.low, found.high) for run, found in gaps.items()}
    label = f"SumR above {reference.run}, {100 * how.confidence:.0f} % interval"
    figure = Figure(
        draw_intervals(intervals, label, zero=True),
        "Paired differences over the queries of both runs; left of the line is worse.",
        said,
    )
    caption = f"Fused rows on the {reference.split} split, protocol {reference.protocol}"
    columns = ["run", *_COLUMNS.values(), f"SumR, against {reference.run}"]
    table = Table(caption, columns, rows, strong=reference.run)
    return Section(ANCHOR, TITLE, [Text(f"{said}."), table, Figures([figure]), _differences_table(settings)])


def _figures(evaluation: Evaluation) -> list[str]:
    summary = summarize(evaluation.ranks["fused"])
    return [f"{summary[name]:.1f}" for name in _COLUMNS]


def _differences_table(settings: Mapping[str, Settings]) -> Table:
    """Make a table of the settings in which the runs differ."""
    flat = {
        run: {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
        for run, sections in settings.items()
    }
    paths = list(dict.fromkeys(path for values in flat.values() for path in values))
    rows = [[path, *(str(values.get(path, "–")) for values in flat.values())] for path in paths]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return Table(
        "Settings in which the runs differ", ["setting", *settings], rows or [["none", *("" for _ in settings)]]
    )

"""The kinds of figures in a report, each a function from numbers to inline SVG. None reads an artifact.

Lines differ in dash and marker as well as in colour; bars also differ in hatch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from prvr_ray.report.canvas import COLORS, LOOKS, OTHER_LOOKS, Look, render, render_strip


@dataclass(frozen=True)
class Line:
    """One curve: x and y of the same length; NaN interrupts it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look | None = None


@dataclass(frozen=True)
class Chart:
    """Axes of a line chart. `mark` is a vertical line at x with a label; `levels` are horizontal lines."""

    x_label: str
    y_label: str
    mark: tuple[float, str] | None = None
    levels: Mapping[str, float] = field(default_factory=dict)
    log_y: bool = False


def draw_lines(lines: Sequence[Line], chart: Chart) -> Markup:
    """Draw curves over a common x, such as the epoch."""

    def draw(axes: Axes) -> None:
        for number, line in enumerate(lines):
            look = line.look or OTHER_LOOKS[number % len(OTHER_LOOKS)]
            axes.plot(
                line.x,
                line.y,
                look.dash,
                color=COLORS[look.color],
                marker=look.marker,
                markevery=max(1, len(line.x) // 8),
                label=line.label,
            )
        for label, level in chart.levels.items():
            look = LOOKS.get(label, OTHER_LOOKS[-2])
            axes.axhline(level, color=COLORS[look.color], linestyle=look.dash, label=label)
        if chart.mark:
            axes.axvline(chart.mark[0], color=COLORS["ink"], linewidth=1, linestyle=(0, (1, 1)), label=chart.mark[1])
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        if chart.log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return render(draw)


def draw_groups(groups: Sequence[str], bars: Mapping[str, Sequence[float]], y_label: str) -> Markup:
    """Draw grouped bars: one bar per group and series.

    Args:
        groups: labels along x.
        bars: series -> one height per group; NaN omits the bar.
    """

    def draw(axes: Axes) -> None:
        width = 0.8 / len(bars)
        for number, (label, heights) in enumerate(bars.items()):
            look = LOOKS.get(label) or OTHER_LOOKS[number % len(OTHER_LOOKS)]
            places = np.arange(len(groups)) + (number - (len(bars) - 1) / 2) * width
            axes.bar(places, heights, width * 0.92, facecolor="none" if look.hatch else COLORS[look.color],
                     edgecolor=COLORS[look.color], hatch=look.hatch, label=label)  # fmt: skip
        axes.set_xticks(range(len(groups)), groups, fontsize=8)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(y_label)

    return render(draw)


def draw_intervals(rows: Mapping[str, tuple[float, float, float]], x_label: str, zero: bool = False) -> Markup:
    """Draw one dot with a whisker per row (figure, lower end, upper end), from top to bottom.

    Args:
        zero: draw a line at 0, for differences.
    """

    def draw(axes: Axes) -> None:
        for place, (label, (figure, low, high)) in enumerate(rows.items()):
            look = LOOKS.get(label, Look("ink", "-", "o"))
            color = COLORS[look.color]
            axes.plot([low, high], [place, place], color=color, solid_capstyle="butt")
            axes.plot([figure], [place], color=color, marker=look.marker, markersize=6)
        if zero:
            axes.axvline(0, color=COLORS["ink"], linewidth=1)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)

    return render(draw, height=0.7 + 0.3 * len(rows))


def draw_bars(values: Mapping[str, float], x_label: str) -> Markup:
    """Draw labelled horizontal bars, the largest first."""
    ordered = dict(sorted(values.items(), key=lambda item: -item[1]))

    def draw(axes: Axes) -> None:
        axes.barh(range(len(ordered)), list(ordered.values()), color=COLORS["fused"], height=0.7)
        axes.set_yticks(range(len(ordered)), list(ordered))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)

    return render(draw, height=0.7 + 0.22 * len(ordered))


def draw_endings(curves: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], chart: Chart) -> Markup:
    """Draw many curves in a few groups, each with a mark at its end.

    Args:
        curves: group -> (x, y) of each of its curves; the first group is highlighted.
    """
    looks = (Look("fused", "-", "o"), Look("muted", "-", "x"), Look("exploration", ":", "s"))

    def draw(axes: Axes) -> None:
        for (group, members), look in zip(curves.items(), looks, strict=False):
            color = COLORS[look.color]
            width = 1.3 if look.color == "fused" else 0.8
            for number, (x, y) in enumerate(members):
                label = group if number == 0 else None
                axes.plot(
                    x, y, look.dash, color=color, marker=look.marker, markevery=[-1], linewidth=width, label=label
                )
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return render(draw)


@dataclass(frozen=True)
class Dimension:
    """One axis of parallel coordinates: the position of each item in [0, 1], and labels with their positions."""

    label: str
    places: Sequence[float]
    ticks: Mapping[str, float]


def draw_parallel(dimensions: Sequence[Dimension], strong: Sequence[int]) -> Markup:
    """Draw items as lines across several dimensions.

    Args:
        strong: indices of the items to highlight.
    """

    def draw(axes: Axes) -> None:
        columns = range(len(dimensions))
        box = {"facecolor": COLORS["page"], "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        heights = np.array([dimension.places for dimension in dimensions])
        for item in sorted(range(heights.shape[1]), key=strong.__contains__):
            color, width = ("fused", 1.6) if item in strong else ("muted", 0.5)
            axes.plot(
                columns, heights[:, item], color=COLORS[color], linewidth=width, alpha=1 if item in strong else 0.6
            )
        for column, dimension in zip(columns, dimensions, strict=True):
            axes.axvline(column, color=COLORS["muted"], linewidth=0.8)
            for text, place in dimension.ticks.items():
                axes.annotate(
                    text, (column, place), (3, 0), textcoords="offset points", fontsize=7, va="center", bbox=box
                )
        axes.set_xticks(columns, [dimension.label for dimension in dimensions], rotation=25, ha="right", fontsize=7)
        axes.set_xlim(-0.1, len(dimensions) - 0.5)
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    return render(draw)


@dataclass(frozen=True)
class Span:
    """A half-open span of a video in seconds."""

    start_s: float
    end_s: float


def draw_scores(
    edges_s: np.ndarray,
    scores_F: np.ndarray,
    limits: tuple[float, float],
    found: Span | None = None,
    true: Sequence[Span] = (),
) -> Markup:
    """Draw a video's frame scores over time, without text or margins, to fit under its filmstrip at any width.

    Args:
        edges_s: (F + 1,) frame f spans [edges_s[f], edges_s[f + 1]).
        scores_F: (F,).
        limits: lower and upper limit of the scores, the same for all answers to a query so that heights are comparable.
        found: the answer's moment, drawn filled. true: the annotated moments, drawn hatched.
    """

    def draw(axes: Axes) -> None:
        for span in true:
            axes.axvspan(span.start_s, span.end_s, facecolor="none", edgecolor=COLORS["true"], hatch="////")
        if found:
            axes.axvspan(found.start_s, found.end_s, color=COLORS["found"], alpha=0.3, linewidth=0)
        axes.stairs(scores_F, edges_s, baseline=None, color=COLORS["ink"], linewidth=1.2)
        axes.set_xlim(edges_s[0], edges_s[-1])
        axes.set_ylim(*limits)

    return render_strip(draw)

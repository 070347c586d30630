"""Figures as inline SVG that takes its colours from the page: matplotlib draws, the page's CSS variables paint.

Every colour here is a stand-in that becomes `var(--name)`, so that one figure is right in light and in dark. Lines
differ in dash and marker as well as in colour. Nothing here reads an artifact.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-ins: colours that no figure would use by chance, one for each CSS variable of templates/style.css.
_NAMES = ("ink", "muted", "grid", "teacher", "inheritance", "exploration", "fused", "both", "found", "true")
_STAND_INS = {name: f"#0f{index:02x}f0" for index, name in enumerate(_NAMES)}

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # measures the labels; the page's own font, which shows them, is no wider
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "prvr_ray",  # the same figure gives the same bytes
    "text.parse_math": False,  # names may hold a dollar sign
    "font.size": 9,
    "text.color": _STAND_INS["ink"],
    "axes.labelcolor": _STAND_INS["ink"],
    "axes.edgecolor": _STAND_INS["muted"],
    "xtick.color": _STAND_INS["muted"],
    "ytick.color": _STAND_INS["muted"],
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _STAND_INS["grid"],
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Look:
    """How one series looks: a CSS variable's name, a dash, a marker and a hatch, so that colour is never alone."""

    color: str
    dash: str = "-"
    marker: str = ""
    hatch: str = ""


LOOKS = {
    "teacher": Look("teacher", "--", "s"),
    "inheritance": Look("inheritance", "-.", "^", "///"),
    "exploration": Look("exploration", ":", "v", "..."),
    "fused": Look("fused", "-", "o"),
    "teacher+student": Look("both", "-", "D", "xx"),
}
# Series without a name of their own take these in turn.
_OTHERS = (*LOOKS.values(), Look("ink", "-"), Look("muted", "--"), Look("ink", ":"))


@dataclass(frozen=True)
class Line:
    """One curve: x and y of the same length; NaN interrupts it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look | None = None


@dataclass(frozen=True)
class Chart:
    """What all line charts share. `mark` is a vertical line at x with a label; `levels` are horizontal lines."""

    x_label: str
    y_label: str
    mark: tuple[float, str] | None = None
    levels: Mapping[str, float] = field(default_factory=dict)
    log_y: bool = False


def draw_lines(lines: Sequence[Line], chart: Chart) -> Markup:
    """Curves over a common x, such as an epoch."""

    def draw(axes: Axes) -> None:
        for number, line in enumerate(lines):
            look = line.look or _OTHERS[number % len(_OTHERS)]
            axes.plot(
                line.x,
                line.y,
                look.dash,
                color=_STAND_INS[look.color],
                marker=look.marker,
                markevery=max(1, len(line.x) // 8),
                label=line.label,
            )
        for label, level in chart.levels.items():
            look = LOOKS.get(label, _OTHERS[-2])
            axes.axhline(level, color=_STAND_INS[look.color], linestyle=look.dash, label=label)
        if chart.mark:
            axes.axvline(chart.mark[0], color=_STAND_INS["ink"], linewidth=1, linestyle=(0, (1, 1)))
            axes.annotate(chart.mark[1], (chart.mark[0], 0.02), xycoords=("data", "axes fraction"), xytext=(3, 0),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        if chart.log_y:
            axes.set_yscale("log")

    return _render(draw, legend=len(lines) + len(chart.levels) > 1)


def draw_groups(groups: Sequence[str], bars: Mapping[str, Sequence[float]], y_label: str) -> Markup:
    """Grouped bars: for each group one bar of every series, in the series' looks.

    Args:
        groups: labels along x.
        bars: series -> one height a group; NaN leaves the bar out.
    """

    def draw(axes: Axes) -> None:
        width = 0.8 / len(bars)
        for number, (label, heights) in enumerate(bars.items()):
            look = LOOKS.get(label) or _OTHERS[number % len(_OTHERS)]
            places = np.arange(len(groups)) + (number - (len(bars) - 1) / 2) * width
            axes.bar(places, heights, width * 0.92, facecolor="none" if look.hatch else _STAND_INS[look.color],
                     edgecolor=_STAND_INS[look.color], hatch=look.hatch, label=label)  # fmt: skip
        axes.set_xticks(range(len(groups)), groups)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(y_label)

    return _render(draw, legend=True)


def draw_intervals(rows: Mapping[str, tuple[float, float, float]], x_label: str, zero: bool = False) -> Markup:
    """One dot with a whisker a row: figure, lower end, upper end; rows from top to bottom.

    Args:
        zero: draw a line at 0, for differences.
    """

    def draw(axes: Axes) -> None:
        for place, (label, (figure, low, high)) in enumerate(rows.items()):
            look = LOOKS.get(label, Look("ink", "-", "o"))
            color = _STAND_INS[look.color]
            axes.plot([low, high], [place, place], color=color, solid_capstyle="butt")
            axes.plot([figure], [place], color=color, marker=look.marker, markersize=6)
        if zero:
            axes.axvline(0, color=_STAND_INS["ink"], linewidth=1)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)

    return _render(draw, height=0.7 + 0.3 * len(rows))


def draw_bars(values: Mapping[str, float], x_label: str) -> Markup:
    """Horizontal bars from the largest down, labelled."""
    ordered = dict(sorted(values.items(), key=lambda item: -item[1]))

    def draw(axes: Axes) -> None:
        axes.barh(range(len(ordered)), list(ordered.values()), color=_STAND_INS["fused"], height=0.7)
        axes.set_yticks(range(len(ordered)), list(ordered))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)

    return _render(draw, height=0.7 + 0.22 * len(ordered))


def draw_endings(curves: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], chart: Chart) -> Markup:
    """Many curves in a few groups, each with a mark where it ends.

    Args:
        curves: group -> (x, y) of each of its curves; the first group stands out.
    """
    looks = (Look("fused", "-", "o"), Look("muted", "-", "x"), Look("exploration", ":", "s"))

    def draw(axes: Axes) -> None:
        for (group, members), look in zip(curves.items(), looks, strict=False):
            color = _STAND_INS[look.color]
            width = 1.3 if look.color == "fused" else 0.8
            for number, (x, y) in enumerate(members):
                label = group if number == 0 else None
                axes.plot(
                    x, y, look.dash, color=color, marker=look.marker, markevery=[-1], linewidth=width, label=label
                )
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)

    return _render(draw, legend=True)


@dataclass(frozen=True)
class Dimension:
    """One vertical line of parallel coordinates: a place in [0, 1] for each item, and what stands at some places."""

    label: str
    places: Sequence[float]
    ticks: Mapping[str, float]


def draw_parallel(dimensions: Sequence[Dimension], strong: Sequence[int]) -> Markup:
    """Items as lines across several dimensions.

    Args:
        strong: numbers of the items that stand out.
    """

    def draw(axes: Axes) -> None:
        columns = range(len(dimensions))
        heights = np.array([dimension.places for dimension in dimensions])
        for item in sorted(range(heights.shape[1]), key=strong.__contains__):
            color, width = ("fused", 1.6) if item in strong else ("muted", 0.5)
            axes.plot(
                columns, heights[:, item], color=_STAND_INS[color], linewidth=width, alpha=1 if item in strong else 0.6
            )
        for column, dimension in zip(columns, dimensions, strict=True):
            axes.axvline(column, color=_STAND_INS["muted"], linewidth=0.8)
            for text, place in dimension.ticks.items():
                axes.annotate(text, (column, place), (3, 0), textcoords="offset points", fontsize=7, va="center")
        axes.set_xticks(columns, [dimension.label for dimension in dimensions], rotation=25, ha="right", fontsize=7)
        axes.set_xlim(-0.1, len(dimensions) - 0.5)
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    return _render(draw)


@dataclass(frozen=True)
class Span:
    """A half-open stretch of a video in seconds."""

    start_s: float
    end_s: float


def draw_scores(
    edges_s: np.ndarray,
    scores_F: np.ndarray,
    limits: tuple[float, float],
    found: Span | None = None,
    true: Sequence[Span] = (),
) -> Markup:
    """A video's frame scores over time: no text and no margins, to lie under its filmstrip at any width.

    Args:
        edges_s: (F + 1,) frame f spans [edges_s[f], edges_s[f + 1]).
        scores_F: (F,).
        limits: lower and upper score, the same for all answers to a query, so that heights compare.
        found: the answer's moment, filled. true: the annotated ones, hatched.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 0.6))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for span in true:
            axes.axvspan(span.start_s, span.end_s, facecolor="none", edgecolor=_STAND_INS["true"], hatch="////")
        if found:
            axes.axvspan(found.start_s, found.end_s, color=_STAND_INS["found"], alpha=0.3, linewidth=0)
        axes.stairs(scores_F, edges_s, baseline=None, color=_STAND_INS["ink"], linewidth=1.2)
        axes.set_xlim(edges_s[0], edges_s[-1])
        axes.set_ylim(*limits)
        return _as_inline(figure, stretch=True)


def _render(draw, *, height: float = 2.7, legend: bool = False) -> Markup:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.3, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        if legend:
            figure.legend(loc="outside upper left", ncols=3)
        return _as_inline(figure)


def _as_inline(figure: Figure, stretch: bool = False) -> Markup:
    """The figure's <svg> element, without document head, metadata and fixed size, its colours as CSS variables."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    head, _, body = sink.getvalue().partition("<metadata>")
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box, "matplotlib writes a viewBox"
    body = body.partition("</metadata>")[2]
    body = re.sub(r"<defs>\s*<style.*?</defs>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # these names repeat from figure to figure
    for name, stand_in in _STAND_INS.items():
        body = body.replace(stand_in, f"var(--{name})")
    fit = ' preserveAspectRatio="none"' if stretch else ""
    # Safe as it stands: matplotlib has escaped every label.
    return Markup(f'<svg aria-hidden="true" {_NAMESPACES} {view_box[0]}{fit}>' + re.sub(r"\n\s*", "\n", body))

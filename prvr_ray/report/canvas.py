"""Renders a matplotlib figure as inline SVG whose colours come from the page's style sheet.

Each colour is drawn as a stand-in and replaced by `var(--name)`, so one figure works in light and dark mode.
`prvr_ray.report.figures` decides what is drawn.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_LONG_LABEL = 15  # characters; three columns of longer legend labels do not fit the width
# Stand-ins: colours that no figure uses by chance, one per CSS variable of templates/style.css.
_NAMES = ("ink", "muted", "grid", "teacher", "inheritance", "exploration", "fused", "both", "found", "true", "page")
COLORS = {name: f"#0f{index:02x}f0" for index, name in enumerate(_NAMES)}

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # used to measure labels; the page's own font is no wider
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "prvr_ray",  # the same figure gives the same bytes
    "text.parse_math": False,  # names may contain a dollar sign
    "font.size": 9,
    "text.color": COLORS["ink"],
    "axes.labelcolor": COLORS["ink"],
    "axes.edgecolor": COLORS["muted"],
    "xtick.color": COLORS["muted"],
    "ytick.color": COLORS["muted"],
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLORS["grid"],
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Look:
    """How one series looks: a CSS variable's name, a dash, a marker and a hatch, never colour alone."""

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
    "chosen": Look("ink", "-", "P", "++"),
    "chosen+hubness": Look("muted", "-", "X", "oo"),
}
# Series that LOOKS does not name take these in turn.
OTHER_LOOKS = (*LOOKS.values(), Look("ink", "-"), Look("muted", "--"), Look("ink", ":"))


def render(draw: Callable[[Axes], None], *, height: float = 2.7) -> Markup:
    """Draw on axes of a width readable on a phone, with a legend above them if there is more than one label.

    Args:
        height: height of the whole figure, inches.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.3, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        labels = axes.get_legend_handles_labels()[1]
        if len(labels) > 1:
            figure.legend(loc="outside upper left", ncols=3 if max(map(len, labels)) < _LONG_LABEL else 2)
        return _inline(figure)


def render_strip(draw: Callable[[Axes], None]) -> Markup:
    """Draw on bare axes without text or margins; the page may stretch the result to any size."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 0.6))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        draw(axes)
        return _inline(figure, stretch=True)


def _inline(figure: Figure, stretch: bool = False) -> Markup:
    """Return the figure's <svg> element without head, metadata or fixed size, with CSS variables as colours."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    head, _, body = sink.getvalue().partition("<metadata>")
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box, "matplotlib writes a viewBox"
    body = body.partition("</metadata>")[2]
    body = re.sub(r"<defs>\s*<style.*?</defs>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # ids repeat across figures, but must be unique in a page
    for name, stand_in in COLORS.items():
        body = body.replace(stand_in, f"var(--{name})")
    fit = ' preserveAspectRatio="none"' if stretch else ""
    # Safe to mark as markup: matplotlib has escaped every label.
    return Markup(f'<svg aria-hidden="true" {_NAMESPACES} {view_box[0]}{fit}>' + re.sub(r"\n\s*", "\n", body))

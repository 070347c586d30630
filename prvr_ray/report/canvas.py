"""Where figures are drawn: matplotlib's canvas in colours that the page decides, and the SVG that comes out of it.

Every colour is a stand-in that becomes `var(--name)`, so that one figure is right in light and in dark. What is drawn
is `prvr_ray.report.figures`'.
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

# Stand-ins: colours that no figure would use by chance, one for each CSS variable of templates/style.css.
_LONG_LABEL = 15  # characters; three such columns would not fit the width
_NAMES = ("ink", "muted", "grid", "teacher", "inheritance", "exploration", "fused", "both", "found", "true", "page")
COLORS = {name: f"#0f{index:02x}f0" for index, name in enumerate(_NAMES)}

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # measures the labels; the page's own font, which shows them, is no wider
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "prvr_ray",  # the same figure gives the same bytes
    "text.parse_math": False,  # names may hold a dollar sign
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
OTHER_LOOKS = (*LOOKS.values(), Look("ink", "-"), Look("muted", "--"), Look("ink", ":"))


def render(draw: Callable[[Axes], None], *, height: float = 2.7) -> Markup:
    """Draw on axes as wide as a phone shows them well; a legend stands above them where there is more than one label.

    Args:
        height: of the whole figure, inches.
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
    """Draw on bare axes, without text or margins, that the page stretches to any size."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 0.6))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        draw(axes)
        return _inline(figure, stretch=True)


def _inline(figure: Figure, stretch: bool = False) -> Markup:
    """The figure's <svg> element, without document head, metadata and fixed size, its colours as CSS variables."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    head, _, body = sink.getvalue().partition("<metadata>")
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box, "matplotlib writes a viewBox"
    body = body.partition("</metadata>")[2]
    body = re.sub(r"<defs>\s*<style.*?</defs>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # these names repeat from figure to figure
    for name, stand_in in COLORS.items():
        body = body.replace(stand_in, f"var(--{name})")
    fit = ' preserveAspectRatio="none"' if stretch else ""
    # Safe as it stands: matplotlib has escaped every label.
    return Markup(f'<svg aria-hidden="true" {_NAMESPACES} {view_box[0]}{fit}>' + re.sub(r"\n\s*", "\n", body))

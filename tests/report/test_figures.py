"""Figures: valid SVG, painted by the page, and nothing of a label is markup."""

from xml.etree import ElementTree

import numpy as np
import pytest

from prvr_ray.report.canvas import LOOKS
from prvr_ray.report.figures import (
    Chart,
    Line,
    Span,
    draw_bars,
    draw_groups,
    draw_intervals,
    draw_lines,
    draw_scores,
)

HOSTILE = '<script>alert("$x$")</script> & --> $\\frac'


def figures():
    line = Line(HOSTILE, [1, 2, 3], [1.0, np.nan, 3.0])
    return {
        "lines": draw_lines([line], Chart("epoch", "SumR", mark=(2, "best"), levels={"teacher": 2.0})),
        "groups": draw_groups(["a", HOSTILE], {"teacher": [1, 2], "fused": [np.nan, 4]}, "R@1"),
        "intervals": draw_intervals({HOSTILE: (1, 0, 2)}, "SumR", zero=True),
        "bars": draw_bars({HOSTILE: 0.5, "b": 0.1}, "importance"),
        "scores": draw_scores(np.arange(4.0), np.array([0.1, 0.9, 0.3]), (0, 1), Span(1, 2), [Span(0.5, 2)]),
    }


@pytest.mark.parametrize("name", figures())
def test_a_figure_is_one_svg_element_coloured_by_the_page(name):
    svg = figures()[name]
    root = ElementTree.fromstring(svg)
    tags = {item.tag.rpartition("}")[2] for item in root.iter()}
    assert root.tag.endswith("svg")
    assert not tags & {"script", "style", "metadata", "foreignObject", "image"}
    assert "var(--" in svg
    assert "#0f" not in svg


def test_labels_stay_text():
    drawn = figures()
    for name in ("lines", "groups", "intervals", "bars"):
        root = ElementTree.fromstring(drawn[name])
        assert HOSTILE in [item.text for item in root.iter() if item.tag.endswith("text")]


def test_the_same_figure_gives_the_same_bytes():
    assert figures() == figures()


def test_series_differ_by_more_than_their_colour():
    looks = LOOKS.values()
    assert len({(look.dash, look.marker) for look in looks}) == len(looks)
    assert len({look.hatch or look.color for look in looks}) == len(looks)

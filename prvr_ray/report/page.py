"""The page as data, and its rendering: sections of blocks, through autoescaping templates into one HTML text.

Captions, file names and errors are untrusted: they reach the page only as values of a template. The only ready-made
markup is a figure's SVG and the style sheet. What a section says is written elsewhere.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"  # names the block's template


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    pairs: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Cell:
    """A table's cell: a figure and, smaller, what qualifies it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows below column titles; the first column names the row, `strong` names the row to look at. Cells of
    `has_prose` are sentences, not figures."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    strong: str = ""
    has_prose: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption; `alt` says in words what it shows."""

    svg: Markup
    caption: str
    alt: str


@dataclass(frozen=True)
class Figures:
    """Figures side by side where there is room."""

    figures: Sequence[Figure]
    kind: str = "figures"


@dataclass(frozen=True)
class Answer:
    """One video in answer to a query.

    ends: what stands below the curve's left and right end. moment: in words. curve: frame scores over time.
    strips: frames as data URIs, first those over the curve's width, then those of the moment; none where the video
    cannot be shown, and `note` says why.
    """

    rank: int
    video_id: str
    is_right: bool
    score: str
    ends: tuple[str, str]
    moment: str
    curve: Markup
    strips: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Question:
    """One query with its answers. `rank` is that of its first relevant video."""

    text: str
    rank: int
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Questions:
    """Queries of one kind: best, worst, random."""

    title: str
    questions: Sequence[Question]
    kind: str = "questions"


Block = Text | Facts | Table | Figures | Questions


@dataclass(frozen=True)
class Section:
    """A part of the page. `missing` says, instead of blocks, what is not there and which command makes it."""

    anchor: str
    title: str
    blocks: Sequence[Block] = ()
    missing: str = ""


@dataclass(frozen=True)
class Page:
    """The report: a title, the questions a reader comes with and their answers in a sentence, and the sections."""

    title: str
    subtitle: str
    verdicts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=tuple)


def render(page: Page) -> str:
    """Write a page as one HTML text that needs no other file and no script."""
    environment = Environment(
        loader=PackageLoader("prvr_ray.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    source, _, _ = environment.loader.get_source(environment, "style.css")  # type: ignore[union-attr]
    return environment.get_template("page.html").render(page=page, style=Markup(source))


def _code(text: str) -> Markup:
    """The text, escaped, with what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))

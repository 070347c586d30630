"""The page as data (sections of blocks), and its rendering by autoescaping templates into one HTML document.

Captions, file names and errors are untrusted, so they reach the page only as template values. The only trusted markup
is the figures' SVG and the style sheet. Other modules write the text of each section.
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
    """A table's cell: a figure and a smaller note, such as its interval."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows below column titles. The first column names the row; `strong` names the row to highlight. With
    `has_prose` the cells are sentences, not figures."""

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

    ends: labels below the left and right end of the curve. moment: the moment in words. curve: frame scores over time.
    strips: filmstrips as data URIs, first of the whole curve, then of the moment; none if the video cannot be shown,
    and then `note` says why.
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
    """One query with its answers. `rank` is the rank of its first relevant video."""

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
    """A part of the page. If it has no data, `missing` says what is missing and which command makes it."""

    anchor: str
    title: str
    blocks: Sequence[Block] = ()
    missing: str = ""


@dataclass(frozen=True)
class Page:
    """The report: a title, the reader's main questions with short answers, and the sections."""

    title: str
    subtitle: str
    verdicts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=tuple)


def render(page: Page) -> str:
    """Render a page as one HTML document that needs no other file and no script."""
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
    """Escape the text and mark words in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))

"""The section of examples: chosen queries, their top videos as filmstrips, and the moment found in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prvr_ray.report.evaluation import Evaluation
from prvr_ray.report.figures import Span, draw_scores
from prvr_ray.report.filmstrips import Projector
from prvr_ray.report.page import Answer, Block, Question, Questions, Section, Text
from prvr_ray.report.wording import clock, span
from prvr_ray.retrieval.metrics import temporal_iou
from prvr_ray.scores.lookup import Found, Lookup, Queries
from prvr_ray.video.errors import VideoError

ANCHOR, TITLE = "answers", "Answers to look at"
_LEGEND = (
    "The curve below each filmstrip is the score of every frame. The filled span is the moment that was found, the "
    "hatched span the annotated one. Three larger frames show the found moment. Curves share one scale per query."
)
_STRIP, _STRIP_SIZE = 6, (54, 96)  # number of frames; their height and width in pixels
_MOMENT, _MOMENT_SIZE = 3, (90, 160)


Ranked = list[tuple[int, Found]]  # rank and answer


@dataclass(frozen=True)
class Query:
    """A query with its ground truth. moments: video_id -> annotated spans."""

    query_id: str
    text: str
    video_ids: Sequence[str]
    moments: Mapping[str, Sequence[Span]]

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Query":
        """Build it from a row of schema.QUERIES."""
        moments: dict[str, list[Span]] = {}
        for moment in row["moments"] or ():
            moments.setdefault(moment["video_id"], []).append(Span(moment["start_s"], moment["end_s"]))
        return cls(row["query_id"], row["text"], row["video_ids"], moments)


@dataclass(frozen=True)
class Video:
    """A video's URI and its length in seconds; the URI is None if only features are known."""

    uri: str | None
    duration_s: float


def choose(evaluation: Evaluation, num_examples: int, seed: int) -> dict[str, list[str]]:
    """Choose queries by kind, none twice: best and worst by the fused rank, and random ones."""
    rng = np.random.default_rng(seed)
    best_Q = np.array([ranks_q[0] for ranks_q in evaluation.ranks["fused"]])
    order = np.lexsort([rng.permutation(len(best_Q)), best_Q])
    each = min(num_examples, len(order) // 3 or 1)
    best, middle, worst = order[:each], order[each : len(order) - each], order[each:][::-1][:each]
    kinds = {"Best": best, "Worst": worst, "Random": rng.permutation(middle)[:each]}
    return {kind: [evaluation.query_ids[place] for place in places] for kind, places in kinds.items() if len(places)}


def find(
    lookup: Lookup, queries: Sequence[Query], vectors: Queries, num_answers: int, first_ranks: Mapping[str, int]
) -> dict[str, Ranked]:
    """Find the top videos of each query, followed by its best relevant video if none of them is relevant.

    Args:
        first_ranks: query_id -> rank of its best relevant video.
    """
    found: dict[str, Ranked] = {}
    for number, (query, answers) in enumerate(zip(queries, lookup.best(vectors, num_answers), strict=True)):
        ranked = list(enumerate(answers, start=1))
        if not {answer.video_id for answer in answers} & set(query.video_ids):
            own = [(weight, rows_QD[number : number + 1]) for weight, rows_QD in vectors]
            [relevant] = lookup.only(query.video_ids).best(own, 1)
            ranked += [(first_ranks[query.query_id], answer) for answer in relevant]
        found[query.query_id] = ranked
    return found


def answers_section(
    chosen: Mapping[str, Sequence[Query]],
    found: Mapping[str, Ranked],
    first_ranks: Mapping[str, int],
    videos: Mapping[str, Video],
    projector: Projector | None,
) -> Section:
    """Build the section.

    Args:
        chosen: kind -> queries.
        found: as `find` returns it.
        videos: video_id -> its URI and length.
        projector: makes the filmstrips; None: show no pictures.
    """
    blocks: list[Block] = [Text(_LEGEND)]
    for kind, queries in chosen.items():
        questions = [
            Question(query.text, first_ranks[query.query_id], _answers(query, found[query.query_id], videos, projector))
            for query in queries
        ]
        blocks.append(Questions(kind, questions))
    return Section(ANCHOR, TITLE, blocks)


def _answers(query: Query, ranked: Ranked, videos: Mapping[str, Video], projector: Projector | None) -> list[Answer]:
    scores = np.concatenate([found.curve_F for _, found in ranked])
    limits = float(scores.min()), float(scores.max())
    return [_draw_answer(rank, found, query, videos[found.video_id], limits, projector) for rank, found in ranked]


def _draw_answer(
    rank: int,
    found: Found,
    query: Query,
    video: Video,
    limits: tuple[float, float],
    projector: Projector | None,
) -> Answer:
    has_times = bool(np.isfinite(found.edges_s).all())
    edges_s = found.edges_s if has_times else np.arange(len(found.edges_s), dtype=float)
    moment = Span(found.start_s, found.end_s) if has_times else None
    true = query.moments.get(found.video_id, ()) if has_times else ()
    strips, note = (
        _strips(found, video, projector) if has_times else ((), "No times: only features of this video are known.")
    )
    return Answer(
        rank=rank,
        video_id=found.video_id,
        is_right=found.video_id in query.video_ids,
        score=f"score {found.score:.3f}",
        ends=(clock(edges_s[0]), clock(edges_s[-1])) if has_times else ("first frame", "last frame"),
        moment=_in_words(found, true) if has_times else "",
        curve=draw_scores(edges_s, found.curve_F, limits, moment, true),
        strips=strips,
        note=note,
    )


def _strips(found: Found, video: Video, projector: Projector | None) -> tuple[Sequence[str], str]:
    """Make filmstrips of the window and the moment, or say why there are none."""
    if projector is None:
        return (), ""
    if not video.uri:
        return (), "No pictures: only features of this video are known."
    whole, moment = Span(found.edges_s[0], found.edges_s[-1]), Span(found.start_s, found.end_s)
    try:
        return (
            projector.strip(video.uri, video.duration_s, whole, _STRIP, _STRIP_SIZE),
            projector.strip(video.uri, video.duration_s, moment, _MOMENT, _MOMENT_SIZE),
        ), ""
    except (VideoError, OSError) as error:
        return (), f"No pictures: {error}"


def _in_words(found: Found, true: Sequence[Span]) -> str:
    said = f"found {span(found.start_s, found.end_s)}, best at {clock(found.peak_s, 1)}"
    if not true:
        return said
    spans = np.array([(moment.start_s, moment.end_s) for moment in true])
    overlap = temporal_iou(np.array([found.start_s, found.end_s]), spans).max()
    annotated = ", ".join(span(moment.start_s, moment.end_s) for moment in true)
    return f"{said}; annotated {annotated}; overlap (IoU) {overlap:.2f}"

"""The section about retrieval: recall of each row with intervals, what helped, and where retrieval fails."""

import numpy as np

from prvr_ray.report.evaluation import MEANS, SUMR, Bootstrap, Evaluation, Gap, gap
from prvr_ray.report.figures import draw_groups, draw_intervals
from prvr_ray.report.page import Block, Cell, Figure, Figures, Section, Table, Text
from prvr_ray.report.wording import count, percent, signed
from prvr_ray.retrieval.metrics import summarize, summarize_by_ratio

ANCHOR, TITLE = "retrieval", "Retrieval"
_COLUMNS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "r100": "R@100", "sumr": "SumR", "medr": "MedR",
            "meanr": "MeanR", "map": "mAP"}  # fmt: skip
_BY_RATIO = "sumr"
_FEW = 10  # number of answers that a user looks through
_CALLED = {
    "teacher": "the teacher alone",
    "inheritance": "the inheritance branch alone",
    "exploration": "the exploration branch alone",
    "fused": "the fused student",
    "teacher+student": "teacher and student together",
    "chosen": "the mixture chosen on validation",
    "chosen+hubness": "that mixture with hubness subtracted",
}
Intervals = dict[str, np.ndarray]


def recall_section(evaluation: Evaluation, how: Bootstrap) -> Section:
    """Build the section: what helped, the table with intervals, SumR by moment-to-video ratio."""
    intervals = evaluation.intervals(how)
    figures = [_interval_figure(evaluation, intervals, how)]
    if np.isfinite(evaluation.ratios).any():
        figures.append(_ratio_figure(evaluation))
    blocks: list[Block] = [Text(what_helped(evaluation, how)), _table(evaluation, intervals, how)]
    if evaluation.moments:
        blocks.append(Text(_moments(evaluation.moments)))
    return Section(ANCHOR, TITLE, [*blocks, Figures(figures)])


def beat_teacher(evaluation: Evaluation, how: Bootstrap) -> str:
    """Say whether the fused student beat its teacher."""
    found = _gap(evaluation, "fused", "teacher", how)
    means = {row: evaluation.values_QM[row].mean(axis=0)[SUMR] for row in ("fused", "teacher")}
    answer = "Yes" if found.low > 0 else "No" if found.high < 0 else "This split cannot tell"
    among = {row: percent(_fraction_among_first(_FEW, evaluation, row)) for row in means}
    interval = f"{percent(how.confidence)} interval {signed(found.low)} to {signed(found.high)}"
    return (
        f"{answer}: SumR {means['fused']:.1f} against {means['teacher']:.1f}, a difference of {signed(found.mean)} "
        f"({interval}). For {among['fused']} of the queries a right video is among the first {_FEW} answers; with the "
        f"teacher alone, for {among['teacher']}."
    )


def where_it_fails(evaluation: Evaluation) -> str:
    """Name the weakest group by moment-to-video ratio and count the queries without a relevant top answer."""
    not_first, not_among_few = (percent(1 - _fraction_among_first(number, evaluation, "fused")) for number in (1, _FEW))
    lost = (
        f"For {not_first} of the queries the right video is not the first answer, for {not_among_few} it is not among "
        f"the first {_FEW}."
    )
    groups = summarize_by_ratio(evaluation.ranks["fused"], evaluation.ratios, evaluation.ratio_edges)
    if len(groups) < 2:
        return lost
    weakest = min(groups, key=lambda name: groups[name][_BY_RATIO])
    return (
        f"{lost} Recall is lowest where the moment fills {_percent(weakest)} of its video: SumR "
        f"{groups[weakest][_BY_RATIO]:.1f}, against {summarize(evaluation.ranks['fused'])[_BY_RATIO]:.1f} overall."
    )


def _fraction_among_first(number: int, evaluation: Evaluation, row: str) -> float:
    """Compute the fraction of queries with a relevant video among the first `number` answers."""
    return float(np.mean([ranks_q[0] <= number for ranks_q in evaluation.ranks[row]]))


def what_helped(evaluation: Evaluation, how: Bootstrap) -> str:
    """Compare each row with the one that it should improve on, in sentences."""
    pairs = [("fused", "teacher"), *(("fused", branch) for branch in ("inheritance", "exploration"))]
    pairs += [("teacher+student", "fused"), ("chosen", "fused"), ("chosen", "teacher"), ("chosen+hubness", "chosen")]
    said = [str(_gap(evaluation, *pair, how)) for pair in pairs if set(pair) <= set(evaluation.ranks)]
    return f"{'. '.join(_capital(sentence) for sentence in said)}."


def _moments(found: dict[str, float]) -> str:
    """`found`: r1_iou0.5 and so on -> percent."""
    said = ", ".join(f"{name.partition('iou')[2]} for {recall:.1f} %" for name, recall in found.items())
    return f"In the right video, the IoU of the found and the annotated moment is at least {said} of the queries."


def _gap(evaluation: Evaluation, above: str, below: str, how: Bootstrap) -> Gap:
    return gap(evaluation, evaluation, (above, below), (_CALLED[above], _CALLED[below]), how)


def _table(evaluation: Evaluation, intervals: Intervals, how: Bootstrap) -> Table:
    rows: list[list[str | Cell]] = []
    for row, ranks in evaluation.ranks.items():
        summary = summarize(ranks)
        ends = dict(zip(MEANS, intervals[row].T.tolist(), strict=True))
        rows.append([row, *(_cell(name, summary[name], ends.get(name)) for name in _COLUMNS)])
    caption = (
        f"{evaluation.split} split, protocol {evaluation.protocol}, {count(len(evaluation.query_ids), 'query')}; below "
        f"each figure its {100 * how.confidence:.0f} % interval, resampling videos. R@K in percent; SumR is their sum."
    )
    return Table(caption, ["row", *_COLUMNS.values()], rows, strong="fused")


def _cell(name: str, figure: float, ends: list[float] | None) -> Cell:
    digits = 3 if name == "map" else 1
    return Cell(f"{figure:.{digits}f}", f"{ends[0]:.{digits}f}–{ends[1]:.{digits}f}" if ends else "")


def _interval_figure(evaluation: Evaluation, intervals: Intervals, how: Bootstrap) -> Figure:
    rows = {
        row: (float(values_QM[:, SUMR].mean()), *intervals[row][:, SUMR].tolist())
        for row, values_QM in evaluation.values_QM.items()
    }
    said = ", ".join(f"{row} {figure:.1f}" for row, (figure, _, _) in rows.items())
    label = f"SumR, {100 * how.confidence:.0f} % interval"
    return Figure(draw_intervals(rows, label), "SumR of each row with its interval.", f"SumR: {said}")


def _ratio_figure(evaluation: Evaluation) -> Figure:
    groups = {
        row: summarize_by_ratio(ranks, evaluation.ratios, evaluation.ratio_edges)
        for row, ranks in evaluation.ranks.items()
    }
    names = list(groups["fused"])
    sizes = [f"{_percent(name)}\n{count(int(groups['fused'][name]['queries']), 'query')}" for name in names]
    bars = {row: [found[name][_BY_RATIO] for name in names] for row, found in groups.items()}
    return Figure(
        draw_groups(sizes, bars, "SumR"),
        "SumR by the fraction of its video that a moment fills. Short moments in long videos are hard to find.",
        "Bar chart of SumR for each row, grouped by moment-to-video ratio",
    )


def _percent(group: str) -> str:
    low, _, high = group.partition("-")
    return f"{100 * float(low):.0f}–{percent(float(high))}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]

"""The tables that commands print at their end on standard output, from the summaries that stages return."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prvr_ray.report.wording import seed_cells

_RECALLS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "r100": "R@100", "sumr": "SumR", "medr": "MedR", "meanr": "MeanR",
            "map": "mAP"}  # fmt: skip

_SHOWN_SETTINGS = 3  # the most important ones of a study
_SHOWN_FAILURES = 3


def show_summary(summary: dict[str, Any]) -> None:
    """Print counts and time, one line each, with dotted names for nested ones; then the output's path on one line."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in _flatten(summary):
        if name not in ("exit_code", "not_kept", "output"):
            shown = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
            table.add_row(escape(name.replace("_", " ")), escape(shown))
    Console().print(table)
    _show_place("output", summary.get("output"))


def show_evaluation(evaluation: dict[str, Any]) -> None:
    """Print the table of `prvr evaluate`: one line per row, recall in percent, then the fused row by M/V ratio."""
    table = Table(title=f"{evaluation['split']} split, protocol {evaluation['protocol']}")
    table.add_column("row")
    for title in _RECALLS.values():
        table.add_column(title, justify="right")
    for name, figures in evaluation["rows"].items():
        table.add_row(name, *_recalls(figures), style="bold" if name == "fused" else None)
    if evaluation.get("by_ratio"):
        table.add_section()
        table.caption = "M/V: the fused row by moment-to-video ratio"
        for ratio, figures in evaluation["by_ratio"].items():
            table.add_row(f"M/V {ratio}", *_recalls(figures))
    Console().print(table)
    if evaluation.get("moments"):
        found = (f"{recall:.1f} % at IoU {name.partition('iou')[2]}" for name, recall in evaluation["moments"].items())
        Console().print(f"moments found in the relevant video, R@1: {', '.join(found)}", soft_wrap=True)
    if outside := evaluation.get("moments_outside_video"):
        such_as = escape(", ".join(outside["such_as"]))
        Console().print(f"left out: {outside['count']} moments outside their video ({such_as})", soft_wrap=True)
    if "warning" in evaluation:
        Console().print(f"[yellow]warning:[/] {evaluation['warning']}", soft_wrap=True)
    _show_place("output", evaluation.get("output"))


def show_demo(summary: dict[str, Any]) -> None:
    """Print the answer of the teacher's index, the table of the demo's test split, and the path of its report."""
    asked = summary["ask_teacher"]
    show_answers({**asked, "query": f"before training, by the teacher's index: {asked['query']}"})
    show_evaluation({name: value for name, value in summary["evaluate"].items() if name != "output"})
    _show_place("report", summary["report"]["output"])


def show_study(summary: dict[str, Any]) -> None:
    """Print the result of `prvr tune`: the best trials, the confirmation, and the verdict."""
    if "verdict" not in summary:  # a dry run
        show_summary(summary)
        return
    Console().print(_trial_table(summary["leaders"], list(summary["importance"])[:_SHOWN_SETTINGS]))
    if summary["proof"]:
        Console().print(_seed_table("confirmation on several seeds, SumR", summary["proof"], ["validation", "test"]))
    Console().print(summary["verdict"], markup=False)
    for name, reason in list(summary["failures"].items())[:_SHOWN_FAILURES]:
        Console().print(f"trial {name} failed: {reason}", markup=False)
    states = ", ".join(f"{number} {state}" for state, number in sorted(summary["states"].items()))
    Console().print(f"trials: {states}; {summary['seconds']:.0f} s", markup=False)
    _show_place("output", summary["output"])


def show_ablation(summary: dict[str, Any]) -> None:
    """Print a table for each question of `prvr ablate`, and its finding in one sentence."""
    if "questions" not in summary:  # a dry run
        show_summary(summary)
        return
    for question in summary["questions"]:
        splits = ["validation", *(["test"] if any(row["test"] for row in question["rows"]) else [])]
        Console().print(_seed_table(f"{question['title']} SumR", question["rows"], splits))
        Console().print(question["finding"], markup=False)
    Console().print(f"seeds: {len(summary['seeds'])}; {summary['seconds']:.0f} s", markup=False)
    _show_place("output", summary["output"])


def show_answers(found: dict[str, Any]) -> None:
    """Print the answers of `prvr search`: rank, video, moment in seconds, score."""
    table = Table(title=escape(found["query"]))
    for title in ("rank", "video", "moment, s", "score"):
        table.add_column(title, justify="left" if title == "video" else "right")
    for answer in found["answers"]:
        moment = f"{answer['start_s']:.1f}-{answer['end_s']:.1f}"
        table.add_row(str(answer["rank"]), escape(answer["video_id"]), moment, f"{answer['score']:.3f}")
    Console().print(table)
    if "warning" in found:
        Console().print(f"[yellow]warning:[/] {escape(found['warning'])}", soft_wrap=True)


def show_checks(report: dict[str, Any]) -> None:
    """Print each check of `prvr doctor` as ok or to do, with its detail."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for check in report["checks"]:
        table.add_row("[green]ok[/]" if check["ok"] else "[red]to do[/]", check["name"], escape(check["detail"]))
    Console().print(table)


def _trial_table(leaders: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> Table:
    """Make a table of trials with the values of some settings."""
    table = Table(title="best trials, validation SumR", box=None)
    table.add_column("trial")
    table.add_column("state")
    for title in ("epochs", "SumR", *(path.rpartition(".")[2] for path in paths)):
        table.add_column(title, justify="right")
    for trial in leaders:
        values = [trial["point"][path] for path in paths]
        shown = [f"{value:.3g}" if isinstance(value, float) else escape(str(value)) for value in values]
        table.add_row(trial["name"], trial["state"], str(trial["epochs"]), f"{trial['best']:.1f}", *shown)
    return table


def _seed_table(title: str, rows: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> Table:
    """Make a table of configurations trained on several seeds; the reference is the row without a difference."""
    table = Table(title=title, box=None)
    table.add_column("configuration")
    for split in splits:
        table.add_column(split, justify="right")
        table.add_column("difference", justify="right")
    separator = " " if len(splits) == 1 else "\n"  # two splits in one line would be wider than a terminal
    for row in rows:
        cells = (f"{text}{separator}({note})" if note else text for text, note in seed_cells(row, splits))
        table.add_row(row["name"], *cells)
    return table


def _recalls(figures: dict[str, float]) -> list[str]:
    """Format one figure per column; ranks from 100 have no decimals, which keeps the table within 80 columns."""
    digits = {
        key: 3 if key == "map" else 0 if key in ("medr", "meanr") and figures[key] >= 100 else 1 for key in _RECALLS
    }
    return [f"{figures[key]:.{digits[key]}f}" for key in _RECALLS]


def _show_place(name: str, uri: str | None) -> None:
    """Print a path or URI on a line of its own, never wrapped, so that it can be copied."""
    if uri:
        Console().print(f"{name}: {uri}", markup=False, highlight=False, soft_wrap=True)


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

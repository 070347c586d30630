"""What commands print last: short tables on standard output. No stage is known here, only what stages return."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_RECALLS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "r100": "R@100", "sumr": "SumR", "medr": "MedR", "map": "mAP"}


def show_summary(summary: dict[str, Any]) -> None:
    """Print counts, time and where the output lies, one line each; nested counts are dotted."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _flat(summary):
        if name != "exit_code":
            table.add_row(name.replace("_", " "), str(value))
    Console().print(table)


def show_evaluation(evaluation: dict[str, Any]) -> None:
    """Print the table of `prvr evaluate`: one line a row, recalls in percent."""
    table = Table(title=f"{evaluation['split']} split, protocol {evaluation['protocol']}")
    table.add_column("row")
    for title in _RECALLS.values():
        table.add_column(title, justify="right")
    for name, figures in evaluation["rows"].items():
        style = "bold" if name == "fused" else None
        table.add_row(name, *(f"{figures[key]:.{3 if key == 'map' else 1}f}" for key in _RECALLS), style=style)
    Console().print(table)
    if evaluation["moments"]:
        found = (f"{share:.1f} % at IoU {name.partition('iou')[2]}" for name, share in evaluation["moments"].items())
        Console().print(f"moments found in the relevant video, R@1: {', '.join(found)}", soft_wrap=True)
    if "warning" in evaluation:
        Console().print(f"[yellow]warning:[/] {evaluation['warning']}")


def show_demo(summary: dict[str, Any]) -> None:
    """Print the table of the demo's test split, and where its report lies."""
    show_evaluation(summary["evaluate"])
    Console().print(f"report: {summary['report']['output']}", markup=False, soft_wrap=True)


def show_answers(found: dict[str, Any]) -> None:
    """Print the answers of `prvr search`: rank, video, moment in seconds, score."""
    table = Table(title=escape(found["query"]))
    for title in ("rank", "video", "moment, s", "score"):
        table.add_column(title, justify="left" if title == "video" else "right")
    for answer in found["answers"]:
        moment = f"{answer['start_s']:.1f}-{answer['end_s']:.1f}"
        table.add_row(str(answer["rank"]), escape(answer["video_id"]), moment, f"{answer['score']:.3f}")
    Console().print(table)


def show_checks(report: dict[str, Any]) -> None:
    """Print the lines of `prvr doctor`: what is well, and what to do."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for check in report["checks"]:
        table.add_row("[green]ok[/]" if check["ok"] else "[red]to do[/]", check["name"], escape(check["detail"]))
    Console().print(table)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

"""What commands print last: short tables on standard output. No stage is known here, only what stages return."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_RECALLS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "r100": "R@100", "sumr": "SumR", "medr": "MedR", "meanr": "MeanR",
            "map": "mAP"}  # fmt: skip


def show_summary(summary: dict[str, Any]) -> None:
    """Print counts and time, one line each, nested ones dotted; then where the output lies, never cut or folded."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in _flat(summary):
        if name not in ("exit_code", "output"):
            shown = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
            table.add_row(escape(name.replace("_", " ")), escape(shown))
    Console().print(table)
    _show_place("output", summary.get("output"))


def show_evaluation(evaluation: dict[str, Any]) -> None:
    """Print the table of `prvr evaluate`: one line a row, recalls in percent, then the fused row by M/V ratio."""
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
        said = ", ".join(
            f"IoU {name.partition('iou')[2]}: {share:.1f}" for name, share in evaluation["moments"].items()
        )
        Console().print(f"moments, R@1 at {said}")
    if "warning" in evaluation:
        Console().print(f"[yellow]warning:[/] {evaluation['warning']}", soft_wrap=True)
    _show_place("output", evaluation.get("output"))


def show_demo(summary: dict[str, Any]) -> None:
    """Print the table of the demo's test split, and where its report lies."""
    show_evaluation({name: value for name, value in summary["evaluate"].items() if name != "output"})
    _show_place("report", summary["report"]["output"])


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


def _recalls(figures: dict[str, float]) -> list[str]:
    """One text a column; ranks of 100 and more without a digit, so that the table keeps within 80 columns."""
    digits = {
        key: 3 if key == "map" else 0 if key in ("medr", "meanr") and figures[key] >= 100 else 1 for key in _RECALLS
    }
    return [f"{figures[key]:.{digits[key]}f}" for key in _RECALLS]


def _show_place(name: str, uri: str | None) -> None:
    """A path or URI in a line of its own, to be copied whole."""
    if uri:
        Console().print(f"{name}: {uri}", markup=False, highlight=False, soft_wrap=True)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

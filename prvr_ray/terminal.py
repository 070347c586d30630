"""What commands print last: short tables on standard output. No stage is known here, only what stages return."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prvr_ray.report.wording import interval, signed, spread

_RECALLS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "r100": "R@100", "sumr": "SumR", "medr": "MedR", "meanr": "MeanR",
            "map": "mAP"}  # fmt: skip

_SHOWN_SETTINGS = 3  # of a study, those that mattered most
_SHOWN_FAILURES = 3


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
        found = (f"{share:.1f} % at IoU {name.partition('iou')[2]}" for name, share in evaluation["moments"].items())
        Console().print(f"moments found in the relevant video, R@1: {', '.join(found)}", soft_wrap=True)
    if "warning" in evaluation:
        Console().print(f"[yellow]warning:[/] {evaluation['warning']}", soft_wrap=True)
    _show_place("output", evaluation.get("output"))


def show_demo(summary: dict[str, Any]) -> None:
    """Print the table of the demo's test split, and where its report lies."""
    show_evaluation({name: value for name, value in summary["evaluate"].items() if name != "output"})
    _show_place("report", summary["report"]["output"])


def show_study(summary: dict[str, Any]) -> None:
    """Print what `prvr tune` found: its best trials, the proof, and the verdict."""
    if "verdict" not in summary:  # a dry run
        show_summary(summary)
        return
    Console().print(_trial_table(summary["leaders"], list(summary["importance"])[:_SHOWN_SETTINGS]))
    if summary["proof"]:
        Console().print(_seed_table("proof on seeds, SumR", summary["proof"], ["validation", "test"]))
    Console().print(summary["verdict"], markup=False)
    for name, reason in list(summary["failures"].items())[:_SHOWN_FAILURES]:
        Console().print(f"trial {name} failed: {reason}", markup=False)
    states = ", ".join(f"{number} {state}" for state, number in sorted(summary["states"].items()))
    Console().print(f"trials: {states}; {summary['seconds']:.0f} s", markup=False)
    _show_place("output", summary["output"])


def show_ablation(summary: dict[str, Any]) -> None:
    """Print the table of each question of `prvr ablate`, and what it shows in one sentence."""
    if "questions" not in summary:  # a dry run
        show_summary(summary)
        return
    for question in summary["questions"]:
        split = "test" if any(row["test"] for row in question["rows"]) else "validation"
        Console().print(_seed_table(f"{question['title']} SumR", question["rows"], [split]))
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


def show_checks(report: dict[str, Any]) -> None:
    """Print the lines of `prvr doctor`: what is well, and what to do."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for check in report["checks"]:
        table.add_row("[green]ok[/]" if check["ok"] else "[red]to do[/]", check["name"], escape(check["detail"]))
    Console().print(table)


def _trial_table(leaders: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> Table:
    """Trials, with the values of some settings."""
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
    """Configurations trained on several seeds, each with its paired difference to the one that has none."""
    table = Table(title=title, box=None)
    table.add_column("configuration")
    for split in splits:
        table.add_column(split, justify="right")
        table.add_column("difference", justify="right")
    before_interval = " " if len(splits) == 1 else "\n"  # or a line is wider than a terminal
    for row in rows:
        figures = [
            text
            for split in splits
            for text in (spread(row[split]), _difference(row[f"{split}_gain"], before_interval))
        ]
        table.add_row(row["name"], *figures)
    return table


def _difference(gain: Mapping[str, Any] | None, before_interval: str) -> str:
    if gain is None:
        return "–"
    mean = signed(gain["mean"])
    return mean if gain["low"] is None else f"{mean}{before_interval}({interval(gain['low'], gain['high'])})"


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

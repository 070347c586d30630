"""Formats numbers for the page and the terminal: times, spreads, intervals, differences."""

from collections.abc import Mapping, Sequence
from typing import Any

_SHORT_S = 10.0
_NO_BREAK = "\u00a0"  # no-break space


def clock(seconds: float, digits: int = 0) -> str:
    """Format a time in a video: 0:07, 12:30, 1:02:03; with a digit 0:07.4."""
    minutes, rest = divmod(round(seconds, digits), 60)
    hours, minutes = divmod(int(minutes), 60)
    shown = f"{rest:0{3 + digits if digits else 2}.{digits}f}"
    return f"{hours}:{minutes:02d}:{shown}" if hours else f"{minutes}:{shown}"


def duration(seconds: float) -> str:
    """Format a length of time in a readable unit: 42 s, 12.5 min, 3.2 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def span(start_s: float, end_s: float) -> str:
    """Format a span of a video: 0:07–0:31; a span under 10 s to tenths of a second, 0:07.4–0:09.0."""
    digits = int(end_s - start_s < _SHORT_S)
    return f"{clock(start_s, digits)}–{clock(end_s, digits)}"


def signed(value: float) -> str:
    """Format a difference with its sign: +1.2, −0.4, 0.0."""
    return f"{value:+.1f}".replace("-", "−") if round(value, 1) else "0.0"


def spread(figures: Mapping[str, Any] | None) -> str:
    """Format the `mean` and `sd` of several runs: 150.0 ± 2.5; for one run the mean alone; for none a dash."""
    if figures is None:
        return "–"
    return f"{figures['mean']:.1f}" + ("" if figures["sd"] is None else f" ± {figures['sd']:.1f}")


def interval(low: float, high: float) -> str:
    """Format the interval of a difference: −0.3 to +10.2."""
    return f"{signed(low)} to {signed(high)}"


def seed_cells(row: Mapping[str, Any], splits: Sequence[str]) -> list[tuple[str, str]]:
    """Format a configuration that was trained on several seeds, as one row of a table.

    Args:
        row: `<split>` (mean and sd) and `<split>_gain` (paired difference to the reference), each None where unknown.

    Returns:
        Two cells per split, its spread and its difference. Each is a figure and its interval; no interval is "".
    """
    cells = []
    for split in splits:
        gain = row[f"{split}_gain"]
        ends = interval(gain["low"], gain["high"]) if gain and gain["low"] is not None else ""
        cells += [(spread(row[split]), ""), (signed(gain["mean"]) if gain else "–", ends)]
    return cells


def percent(fraction: float) -> str:
    """Format a fraction as whole percent that never breaks across lines: 45 %."""
    return f"{100 * fraction:.0f}{_NO_BREAK}%"


def count(number: int, noun: str) -> str:
    """Format a number with its noun: 1 video, 1,200 videos, 3 queries."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun.removesuffix('y')}ies" if noun.endswith("y") else f"{number:,} {noun}s"

"""How numbers read on the page and in the terminal: times, spreads, intervals, differences."""

from collections.abc import Mapping
from typing import Any

_SHORT_S = 10.0
_NO_BREAK = "\u00a0"  # a space that does not break


def clock(seconds: float, digits: int = 0) -> str:
    """A place in a video: 0:07, 12:30, 1:02:03; with a digit 0:07.4."""
    minutes, rest = divmod(round(seconds, digits), 60)
    hours, minutes = divmod(int(minutes), 60)
    shown = f"{rest:0{3 + digits if digits else 2}.{digits}f}"
    return f"{hours}:{minutes:02d}:{shown}" if hours else f"{minutes}:{shown}"


def duration(seconds: float) -> str:
    """A length of time in the largest unit that leaves a number to read: 42 s, 12.5 min, 3.2 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def span(start_s: float, end_s: float) -> str:
    """A stretch of a video: 0:07–0:31; a short one to tenths of a second, 0:07.4–0:09.0."""
    digits = int(end_s - start_s < _SHORT_S)
    return f"{clock(start_s, digits)}–{clock(end_s, digits)}"


def signed(value: float) -> str:
    """A difference, with its sign: +1.2, −0.4, 0.0."""
    return f"{value:+.1f}".replace("-", "−") if round(value, 1) else "0.0"


def spread(figures: Mapping[str, Any] | None) -> str:
    """Mean and standard deviation of several runs, `mean` and `sd`: 150.0 ± 2.5; of one run its figure alone."""
    if figures is None:
        return "–"
    return f"{figures['mean']:.1f}" + ("" if figures["sd"] is None else f" ± {figures['sd']:.1f}")


def interval(low: float, high: float) -> str:
    """The interval of a difference: −0.3 to +10.2."""
    return f"{signed(low)} to {signed(high)}"


def percent(share: float) -> str:
    """A share as whole percent, not broken across lines: 45 %."""
    return f"{100 * share:.0f}{_NO_BREAK}%"


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 video, 1,200 videos, 3 queries."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun.removesuffix('y')}ies" if noun.endswith("y") else f"{number:,} {noun}s"

"""Progress of long steps: a live bar on a terminal, a plain line every 10 seconds in a pipe or a job log."""

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

QUIET = "PRVR_QUIET"  # environment variable: if set, print no progress, in worker processes too
_LINE_EVERY_S = 10.0


class Steps:
    """Counts the steps of one stage and shows rate and time left on standard error.

    Args:
        what: names the stage, `ingest`.
        total: steps in all; None when unknown.
        unit: what one step is, in the plural: `videos`.
    """

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done, self._printed, self._note = 0, 0, ""
        self._begun = self._last_line = time.monotonic()
        self._live = self._bar() if sys.stderr.isatty() and not os.environ.get(QUIET) else None

    def __enter__(self) -> "Steps":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()
        elif self._last_line > self._begun and self._printed != self._done:
            self._print_line()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done; `note` is shown behind the rate: failures, a loss."""
        self._done += steps
        self._note = note
        if self._live:
            self._live.update(self._live.task_ids[0], completed=self._done, note=f"{self._rate()}  {note}")
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._print_line()

    def say(self, line: str) -> None:
        """Print a line of its own, such as what the stage is waiting for."""
        if self._live:
            self._live.console.print(line, markup=False)
        elif not os.environ.get(QUIET):
            print(line, file=sys.stderr, flush=True)

    def _bar(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        note = TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True))
        bar = Progress(*columns, note, console=Console(stderr=True), expand=True)  # the note is cut off at the edge
        bar.add_task(self._what, total=self._total, note="")
        return bar

    def _rate(self) -> str:
        return f"{self._done / max(time.monotonic() - self._begun, 1e-9):.1f} {self._unit}/s"

    def _print_line(self) -> None:
        if os.environ.get(QUIET):
            return
        self._printed = self._done
        elapsed = time.monotonic() - self._begun
        left = f", {elapsed / self._done * (self._total - self._done):.0f} s left" if self._total and self._done else ""
        of_all = f"/{self._total}" if self._total else ""
        line = f"{self._what}: {self._done}{of_all} {self._unit}, {self._rate()}{left}  {self._note}"
        print(line.rstrip(), file=sys.stderr, flush=True)

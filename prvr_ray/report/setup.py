"""The section about what was run: encoders, settings that differ from the defaults, versions, and time per command."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prvr_ray.config import SECTIONS
from prvr_ray.report.page import Block, Facts, Section, Table
from prvr_ray.report.wording import duration

ANCHOR, TITLE = "setup", "What was run"
Record = Mapping[str, Any]

_RATED = ("frames", "queries", "rendered", "epochs")  # the rate of a command is that of its first such count
_NO_COUNTS = ("exit_code", "best")  # best: the settings that a search found, not a count


def setup_section(
    where: str, spec: Mapping[str, Any] | None, settings: Mapping[str, Mapping[str, Any]], history: Sequence[Record]
) -> Section:
    """Build the section.

    Args:
        where: URI of the collection.
        spec: spec.json of the feature set; None if it has none.
        settings: section -> field -> value, as a run's config.yaml holds them.
        history: as `prvr_ray.collection.history.read_history` returns it.
    """
    facts = [("collection", where), *(_encoder_facts(spec) if spec else ())]
    if history:
        facts.append(("versions", ", ".join(f"{name} {number}" for name, number in history[-1]["versions"].items())))
    blocks: list[Block] = [Facts(facts), _settings_table(settings)]
    if history:
        blocks.append(_stage_table(history))
    return Section(ANCHOR, TITLE, blocks)


def differing(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings whose value is not the default: path, value, default."""
    for section, values in settings.items():
        defaults = SECTIONS[section]().model_dump()
        for field, value in values.items():
            if value != defaults[field]:
                yield f"{section}.{field}", value, defaults[field]


def _encoder_facts(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "teacher", f"{spec['teacher'].get('name', 'released features')}, {spec['teacher']['dim']} features"
    student = "the teacher's" if spec["shared"] else spec["student"].get("name", "released features")
    yield "student's inputs", f"{student}, {spec['student']['dim']} features a frame"
    if "fps" in spec:
        yield "frames", f"{spec['fps']:g} a second, {spec['sampling']}"


def _settings_table(settings: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [[path, str(value), str(default) or "–"] for path, value, default in differing(settings)]
    return Table("Settings that differ from the defaults", ["setting", "value", "default"], rows or [["none", "", ""]])


def _stage_table(history: Sequence[Record]) -> Table:
    """Make a table with one row per command. Repeated calls only resume, so the longest call is shown."""
    calls: dict[str, list[Record]] = {}
    for record in history:
        calls.setdefault(record["command"], []).append(record)
    rows = []
    for command, records in calls.items():
        longest = max(records, key=lambda record: record["summary"]["seconds"])
        seconds = longest["summary"]["seconds"]
        counts = dict(_counts(longest["summary"]))
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(longest["ended_at"]))
        said = ", ".join(f"{name} {counts[name]:,}" for name in counts)
        rows.append([command, when, duration(seconds), _rate(counts, seconds), said])
    columns = ["command", "ended", "took", "rate", "counts"]
    return Table("Commands, the longest call of each", columns, rows, has_prose=True)


def _rate(counts: Mapping[str, int], seconds: float) -> str:
    """Format a rate per second, or per minute if that is more readable; empty for a command without such a count."""
    name = next((name for name in _RATED if counts.get(name)), None)
    if name is None:
        return ""
    a_second = counts[name] / max(seconds, 0.1)
    return f"{a_second:,.0f} {name}/s" if a_second >= 1 else f"{60 * a_second:.1f} {name}/min"


def _counts(summary: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of a summary by name; those one level down have both names."""
    for name, value in summary.items():
        if name in _NO_COUNTS:
            continue
        if isinstance(value, Mapping) and not prefix:
            yield from _counts(value, f"{name} ")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{name}".replace("_", " "), value

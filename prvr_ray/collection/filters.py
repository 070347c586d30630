"""Filters on videos: `COLUMN OP VALUE`, such as `camera = front` or `recorded >= 2024-05-01`.

A filter is data: a small grammar reads it, and nothing in it is evaluated. COLUMN is a column of the manifest that the
videos came with, or video_id, split or duration_s; quotes allow any name. OP is =, !=, <, <=, >, >= or in. VALUE is a
word, a number, true, false, a date or time in ISO 8601, or a text in quotes, with a quote doubled inside; after `in`,
a list such as (a, 'b c'). A video without a value in the column matches no filter on it, as in SQL.
"""

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from prvr_ray.collection.metadata import Value, parse_boolean, parse_number, parse_time, unpack_metadata

_TEXT = r"""'(?:[^']|'')*'|"(?:[^"]|"")*\""""
_WORD = r"[^\s'\"(),=<>!]+"
_FILTER = re.compile(rf"\s*({_TEXT}|{_WORD})\s*(!=|<=|>=|=|<|>|\bin\b)\s*(.*?)\s*", re.DOTALL)
_VALUE = re.compile(rf"\s*({_TEXT}|{_WORD})\s*")
_LIST = re.compile(rf"\(({_VALUE.pattern}(?:,{_VALUE.pattern})*)\)")
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_OWN_COLUMNS = ("video_id", "split", "duration_s")
_NUM_SHOWN = 20


@dataclass(frozen=True)
class Filter:
    """A parsed filter. values: (text, whether it was quoted), one unless op is `in`."""

    text: str
    column: str
    op: str
    values: tuple[tuple[str, bool], ...]


def parse_filter(text: str) -> Filter:
    """Parse one filter.

    Raises:
        ValueError: it has another form.
    """
    match = _FILTER.fullmatch(text)
    listed = match and match[2] == "in"
    form = (_LIST if listed else _VALUE).fullmatch(match[3]) if match else None
    if not match or not form:
        raise ValueError(
            f"filter {text!r} is not COLUMN OP VALUE, such as camera = front, length_m >= 2.5 or "
            "place in ('the harbour', pier)"
        )
    values = _VALUE.findall(form[1] if listed else match[3])
    return Filter(text.strip(), _unquote(match[1])[0], match[2], tuple(map(_unquote, values)))


def matching_videos(videos: pa.Table, filters: Sequence[str]) -> pa.Array:
    """Return the ids of the videos that match every filter.

    Args:
        videos: rows of schema.VIDEOS.

    Raises:
        ValueError: a filter that cannot be parsed, an unknown column, a value of another type than the column's, or
            no video matches.
    """
    is_kept = np.ones(len(videos), bool)
    metadata = [unpack_metadata(packed) for packed in videos["metadata"].to_pylist()] if filters else []
    for item in map(parse_filter, filters):
        is_kept &= _match_values(item, _column_values(videos, metadata, item))
    if not is_kept.any():
        raise ValueError(f"{' and '.join(filters)} leaves 0 of {len(videos)} videos")
    return videos["video_id"].filter(pa.array(is_kept)).combine_chunks()


def _column_values(videos: pa.Table, metadata: Sequence[dict[str, Value]], item: Filter) -> list[Value | None]:
    if item.column in _OWN_COLUMNS:
        values: list[Value | None] = videos[item.column].to_pylist()
        return values
    found = [of_video.get(item.column) for of_video in metadata]
    if all(value is None for value in found):
        known = sorted({name for of_video in metadata for name in of_video})
        names = ", ".join([*_OWN_COLUMNS, *known[:_NUM_SHOWN]]) + (", ..." if len(known) > _NUM_SHOWN else "")
        raise ValueError(f"filter {item.text!r}: no video has a column {item.column!r}; there are {names}")
    return found


def _match_values(item: Filter, values: Iterable[Value | None]) -> np.ndarray:
    """Whether each value matches. Values of a type are compared with the filter's own value read as that type."""
    wanted: dict[type, list[Any]] = {}
    errors: dict[type, ValueError] = {}
    kept = []
    for value in values:
        kind = _kind_of(value)
        if kind not in wanted and kind not in errors:
            try:
                wanted[kind] = [_read_value(item, text, is_quoted, kind) for text, is_quoted in item.values]
            except ValueError as error:
                errors[kind] = error
        kept.append(value is not None and kind in wanted and _compare(item.op, value, wanted[kind]))
    if errors and not set(wanted) - {type(None)}:
        raise next(iter(errors.values()))
    return np.array(kept, bool)


def _compare(op: str, value: Value, wanted: Sequence[Any]) -> bool:
    return value in wanted if op == "in" else _ORDERS[op](value, wanted[0])


def _kind_of(value: Value | None) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _read_value(item: Filter, text: str, is_quoted: bool, kind: type) -> Any:
    """Read a filter's value as the type that its column has."""
    if kind is type(None):
        return None
    if kind is bool and item.op not in ("=", "!=", "in"):
        raise ValueError(f"filter {item.text!r}: {item.column} is true or false; use = or !=")
    readers: dict[type, Callable[[str], Any]] = {float: parse_number, bool: parse_boolean, datetime: parse_time}
    names = {str: "texts", float: "numbers", bool: "true or false", datetime: "dates or times"}
    try:
        if is_quoted and kind in (float, bool):
            raise ValueError
        return readers.get(kind, str)(text)
    except ValueError:
        given = "the text " * is_quoted + repr(text)
        raise ValueError(f"filter {item.text!r}: {item.column} holds {names[kind]}, not {given}") from None


def _unquote(token: str) -> tuple[str, bool]:
    if token[0] in "'\"":
        return token[1:-1].replace(token[0] * 2, token[0]), True
    return token, False

"""Queries from a file: lines of text, or rows of a table with a `text` column.

Empty lines and rows are left out and counted; repeated texts are all answered. A query without an id is named after its
line or row, so ids sort in the order of the file.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from prvr_ray.annotations.rows import Columns, Row, decode, kind_of, read_rows
from prvr_ray.storage import get_file

STDIN = "-"
COLUMNS = pa.schema([("query_id", pa.string()), ("text", pa.string())])
_COLUMNS = Columns(("text",), ("query_id",), ignore_others=True)


@dataclass(frozen=True)
class QueryRows:
    """rows: (query_id, text), by query_id. num_empty: lines or rows without text, left out."""

    rows: pa.Table
    num_empty: int


def is_file(source: str) -> bool:
    """Whether `--queries` names a file, or standard input, and not a split."""
    return source == STDIN or source.lower().endswith(".txt") or kind_of(source) is not None


def read_queries(source: str) -> QueryRows:
    """Read a parquet, jsonl, csv or txt file, local or at a URI, or standard input as lines of text.

    Raises:
        ValueError: it cannot be read (the line or row is named), holds no text at all, or an id occurs twice.
    """
    name = "standard input" if source == STDIN else source
    data, kind = _read_source(source), kind_of(source)
    rows = _lines(data, name) if kind is None else list(read_rows(data, name, kind, _COLUMNS))
    unit = "row" if kind in ("csv", "parquet") else "line"
    width = len(str(len(rows)))  # names sort as the rows stand: line-01, line-02, ...
    found = [(_id(row, f"{unit}-{row.number:0{width}d}"), _text(row)) for row in rows]
    kept = [(query_id, text) for query_id, text in found if text]
    if not kept:
        raise ValueError(f"{name} holds no text: {len(rows)} empty lines or rows")
    repeated = [query_id for query_id, count in Counter(query_id for query_id, _ in kept).items() if count > 1]
    if repeated:
        raise ValueError(f"{name}: query_id {repeated[0]!r} occurs twice ({len(repeated)} such ids)")
    ids, texts = zip(*sorted(kept), strict=True)
    return QueryRows(pa.table([ids, texts], schema=COLUMNS), len(rows) - len(kept))


def _read_source(source: str) -> bytes:
    if source == STDIN:
        return sys.stdin.buffer.read()
    try:
        return get_file(source)
    except FileNotFoundError:
        raise ValueError(f"there is no file {source}") from None


def _lines(data: bytes, name: str) -> list[Row]:
    lines = decode(data, name).removesuffix("\n").split("\n") if data else []
    return [Row(f"{name}:{number}", number, {"text": line}) for number, line in enumerate(lines, 1)]


def _text(row: Row) -> str:
    text: Any = row.values.get("text", "")
    if not isinstance(text, str):
        raise ValueError(f"{row.where}: text is {text!r}, not a string")
    return text.strip()


def _id(row: Row, place: str) -> str:
    return str(row.values.get("query_id", place))

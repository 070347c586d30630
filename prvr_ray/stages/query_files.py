"""Questions that a user brings: lines of text, or rows of a table with a `text` column. No Ray here.

Empty lines are left out and counted; equal texts stay, each is answered. A question without an id is called after its
line, so that the order of ids is the order of the file.
"""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prvr_ray.storage import get_file

STDIN = "-"
COLUMNS = pa.schema([("query_id", pa.string()), ("text", pa.string())])
_TEXT, _ID = "text", "query_id"

Row = dict[str, Any]


@dataclass(frozen=True)
class Questions:
    """rows: (query_id, text), by query_id. num_empty: lines or rows without text, left out."""

    rows: pa.Table
    num_empty: int


def is_file(source: str) -> bool:
    """Whether `--queries` names a file, or standard input, and not a split."""
    return source == STDIN or source.rpartition(".")[2].lower() in _READERS


def read_questions(source: str) -> Questions:
    """Read a parquet, jsonl, csv or txt file, local or at a URI, or standard input as lines of text.

    Raises:
        ValueError: it cannot be read (the line is named), holds no text at all, or an id stands twice.
    """
    data, kind = _read(source)
    try:
        rows = list(_READERS[kind](data))
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{source}: {error}") from None
    kept = [(query_id, text.strip()) for query_id, text in rows if text and text.strip()]
    if not kept:
        raise ValueError(f"{source} holds no text: {len(rows)} empty lines or rows")
    repeated = [query_id for query_id, count in Counter(query_id for query_id, _ in kept).items() if count > 1]
    if repeated:
        raise ValueError(f"{source}: {_ID} {repeated[0]!r} stands twice ({len(repeated)} such ids)")
    ids, texts = zip(*sorted(kept), strict=True)
    return Questions(pa.table([ids, texts], schema=COLUMNS), len(rows) - len(kept))


def _read(source: str) -> tuple[bytes, str]:
    if source == STDIN:
        return sys.stdin.buffer.read(), "txt"
    try:
        return get_file(source), source.rpartition(".")[2].lower()
    except FileNotFoundError:
        raise ValueError(f"there is no file {source}") from None


def _lines(data: bytes) -> Iterable[tuple[str, str]]:
    lines = _text(data).removesuffix("\n").split("\n")
    width = len(str(len(lines)))
    return ((f"line-{number:0{width}d}", line) for number, line in enumerate(lines, 1))


def _json_lines(data: bytes) -> Iterable[tuple[str, str]]:
    rows = []
    for name, line in _lines(data):
        try:
            rows.append((name, json.loads(line) if line.strip() else {_TEXT: ""}))
        except ValueError as error:
            raise ValueError(f"{name} is not JSON: {error}") from None
    return _named(rows)


def _csv_rows(data: bytes) -> Iterable[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(_text(data), newline=""))
    rows: list[Row] = list(reader)
    width = len(str(len(rows)))
    return _named((f"row-{number:0{width}d}", row) for number, row in enumerate(rows, 1))


def _parquet_rows(data: bytes) -> Iterable[tuple[str, str]]:
    table = pq.read_table(pa.BufferReader(data))
    columns = [name for name in (_ID, _TEXT) if name in table.schema.names]
    rows = table.select(columns).to_pylist()
    width = len(str(len(rows)))
    return _named((f"row-{number:0{width}d}", row) for number, row in enumerate(rows, 1))


def _named(rows: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, str]]:
    """(id, text) of each row: its own id, or the name of its place."""
    for name, row in rows:
        if not isinstance(row, dict) or _TEXT not in row:
            raise ValueError(f"{name} has no column {_TEXT!r}; the columns are {_TEXT} and, optional, {_ID}")
        text = row[_TEXT] or ""
        if not isinstance(text, str):
            raise ValueError(f"{name}: {_TEXT} is {text!r}, not a string")
        yield str(row.get(_ID) or name), text


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None


_READERS: dict[str, Callable[[bytes], Iterable[tuple[str, str]]]] = {
    "txt": _lines,
    "jsonl": _json_lines,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
}

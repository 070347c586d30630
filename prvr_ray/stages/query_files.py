"""Questions that a user brings: lines of text, or rows of a table with a `text` column. No Ray here.

Empty lines and rows are left out and counted; equal texts stay, each is answered. A question without an id is called
after its line or row, so that the order of ids is the order of the file.
"""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from prvr_ray.storage import get_file

STDIN = "-"
COLUMNS = pa.schema([("query_id", pa.string()), ("text", pa.string())])
_TEXT, _ID = "text", "query_id"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Questions:
    """rows: (query_id, text), by query_id. num_empty: lines or rows without text, left out."""

    rows: pa.Table
    num_empty: int


def is_file(source: str) -> bool:
    """Whether `--queries` names a file, or standard input, and not a split."""
    return source == STDIN or PurePath(source).suffix[1:].lower() in _READERS


def read_questions(source: str) -> Questions:
    """Read a parquet, jsonl, csv or txt file, local or at a URI, or standard input as lines of text.

    Raises:
        ValueError: it cannot be read (the line or row is named), holds no text at all, or an id stands twice.
    """
    data, kind = _read(source)
    name = "standard input" if source == STDIN else source
    try:
        rows = list(_READERS[kind](data))
    except (ValueError, RecursionError, pa.ArrowException) as error:
        raise ValueError(f"{name}: {error}") from None
    kept = [(query_id, text.strip()) for query_id, text in rows if text.strip()]
    if not kept:
        raise ValueError(f"{name} holds no text: {len(rows)} empty lines or rows")
    repeated = [query_id for query_id, count in Counter(query_id for query_id, _ in kept).items() if count > 1]
    if repeated:
        raise ValueError(f"{name}: {_ID} {repeated[0]!r} stands twice ({len(repeated)} such ids)")
    ids, texts = zip(*sorted(kept), strict=True)
    return Questions(pa.table([ids, texts], schema=COLUMNS), len(rows) - len(kept))


def _read(source: str) -> tuple[bytes, str]:
    if source == STDIN:
        return sys.stdin.buffer.read(), "txt"
    try:
        return get_file(source), source.rpartition(".")[2].lower()
    except FileNotFoundError:
        raise ValueError(f"there is no file {source}") from None


def _lines(data: bytes) -> list[tuple[str, str]]:
    return _numbered("line", _text(data).removesuffix("\n").split("\n") if data else [])


def _json_lines(data: bytes) -> Iterable[tuple[str, str]]:
    rows = []
    for name, line in _lines(data):
        try:
            rows.append((name, json.loads(line) if line.strip() else {_TEXT: ""}))
        except ValueError as error:
            raise ValueError(f"{name} is not JSON: {error}") from None
    return _named(rows)


def _csv_rows(data: bytes) -> Iterable[tuple[str, str]]:
    reader = csv.reader(io.StringIO(_text(data), newline=""), strict=True)
    try:
        header, *lines = list(reader) or [[_TEXT]]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is not CSV: {error}") from None
    _check_columns(header)
    rows = []
    for name, values in _numbered("row", lines):
        if len(values) > len(header):
            raise ValueError(f"{name} has {len(values)} values for {len(header)} columns; quote texts with commas")
        rows.append((name, {_TEXT: "", **dict(zip(header, values, strict=False))}))
    return _named(rows)


def _parquet_rows(data: bytes) -> Iterable[tuple[str, str]]:
    file = pq.ParquetFile(pa.BufferReader(data))
    _check_columns(file.schema_arrow.names)
    columns = [name for name in (_ID, _TEXT) if name in file.schema_arrow.names]
    return _named(_numbered("row", file.read(columns).to_pylist()))


def _numbered(what: str, items: list[Item]) -> list[tuple[str, Item]]:
    """Names that sort as the items stand: line-01, line-02, ..."""
    width = len(str(len(items)))
    return [(f"{what}-{number:0{width}d}", item) for number, item in enumerate(items, 1)]


def _check_columns(names: Sequence[str]) -> None:
    if _TEXT not in names:
        raise ValueError(f"no column {_TEXT!r}, but {', '.join(names)}; it takes {_TEXT} and, optional, {_ID}")


def _named(rows: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, str]]:
    """(id, text) of each row: its own id, or the name of its place."""
    for name, row in rows:
        if not isinstance(row, dict) or _TEXT not in row:
            raise ValueError(f"{name} has no {_TEXT!r}; a row has {_TEXT} and, optional, {_ID}")
        text, own_id = "" if row[_TEXT] is None else row[_TEXT], row.get(_ID)
        if not isinstance(text, str):
            raise ValueError(f"{name}: {_TEXT} is {text!r}, not a string")
        query_id = name if own_id in (None, "") else str(own_id)
        try:
            (query_id + text).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} holds half of a surrogate pair, which is no character") from None
        yield query_id, text


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    if "\0" in text:
        raise ValueError("holds NUL characters: it is not UTF-8 text, maybe UTF-16")
    return text


_READERS: dict[str, Callable[[bytes], Iterable[tuple[str, str]]]] = {
    "txt": _lines,
    "jsonl": _json_lines,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
}

"""The one reader of rows that users bring: csv, jsonl and parquet, for captions, manifests and queries alike.

Whatever has one meaning is read (a byte order mark, `sep=;`, tabs, `Video ID` for video_id, pandas' index column,
blank rows); everything else is an error that names the file, the line and the column. What the values mean is the
caller's business.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

KINDS = ("csv", "jsonl", "parquet")
MAX_FIELD = 131_072  # characters of a value; longer than that is damage, not text
_CSV_LIMIT = 2**31 - 1  # csv's own, which does not say in which column: `_check_text` does
_DELIMITERS = ",\t;"
_INDEX = re.compile(r"__index_level_\d+__")  # pandas' index in parquet
_UNNAMED = re.compile(r"(unnamed:_?\d+)?|__index_level_\d+__")  # pandas' index in csv, or a spreadsheet's empty column

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Columns:
    """What a table holds.

    Attributes:
        required: columns that must be there; their values may still be empty.
        optional: columns that may be there.
        aliases: other name -> column.
        ignore_others: allow other columns; otherwise they are errors, because a misspelt one would lose data silently.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignore_others: bool = False

    def name_of(self, key: str) -> str | None:
        """The column that a header means, whatever its case and spaces; None for another one."""
        plain = _plain_key(key)
        name = self.aliases.get(plain, plain)
        return name if name in self.required or name in self.optional else None

    def wanted(self) -> str:
        """The columns, for an error."""
        others = {name: [alias for alias, of in self.aliases.items() if of == name] for name in self.required}
        required = [" or ".join([name, *aliases]) for name, aliases in others.items()]
        return f"wanted: {', '.join(required)}" + (f"; optional: {', '.join(self.optional)}" if self.optional else "")


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        where: `file:line`, where the row begins, or `file: row 7` of parquet.
        number: from 1: the line of jsonl, the row of csv and parquet. Blank rows count.
        values: by column; empty values are left out, so a blank row has none.
        others: likewise by the names of other columns, where those are not errors.
    """

    where: str
    number: int
    values: dict[str, Any]
    others: dict[str, Any] = field(default_factory=dict)


def kind_of(name: str) -> str | None:
    """csv, jsonl or parquet, by a file's ending; None for another ending."""
    suffix = PurePath(name).suffix[1:].lower()
    return suffix if suffix in KINDS else None


def read_rows(data: bytes, name: str, kind: str, columns: Columns) -> Iterator[Row]:
    """Stream the rows of a table.

    Args:
        data: the file's content.
        name: the file's, for errors.
        kind: one of KINDS.
        columns: which there are.

    Raises:
        ValueError: not UTF-8, a NUL character, half of a surrogate pair, a malformed row, a field longer than
            MAX_FIELD, a column that is missing, unknown, there twice or without a name.
    """
    matched: dict[tuple[str, ...], dict[str, str]] = {}  # most rows of jsonl have the keys of the one before
    for where, number, values in _READERS[kind](data, name, columns):
        keys = tuple(values)
        if keys and keys not in matched:
            matched[keys] = _match_columns(keys, columns, where)
        names = matched.get(keys, {})
        found = _named_values(values, names, where)
        others = {key.strip(): value for key, value in values.items() if _is_other(key, value, names)}
        if not columns.ignore_others:
            _check_unnamed(values, where)
        yield Row(where, number, found, others)


def read_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Stream the lines of a UTF-8 file, line ends included.

    Returns:
        Pairs of `file:number`, from 1, and the line.

    Raises:
        ValueError: a line is not UTF-8, or holds a NUL character.
    """
    with file.open("rb") as content:
        for number, raw in enumerate(content, 1):
            yield f"{file}:{number}", decode(raw, str(file), number)


def decode(data: bytes, name: str, first_line: int = 1) -> str:
    """Decode UTF-8 text, without its byte order mark. Raises ValueError that names file and line."""
    try:
        text = data.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        number = first_line + data.count(b"\n", 0, error.start)
        raise ValueError(f"{name}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    if "\0" in text:
        number = first_line + text.count("\n", 0, text.index("\0"))
        raise ValueError(f"{name}:{number}: a NUL character: this is not UTF-8 text, maybe UTF-16; save it as UTF-8")
    return text


def parse_json(text: str, where: str) -> Any:
    """Parse JSON. Raises ValueError that begins with `where`; one key twice is an error too."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from None


def check_record(model: type[Model], values: Any, where: str) -> Model:
    """Check a record's fields. Raises ValueError that begins with `where` and names the first wrong field."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        path = ".".join(str(part) for part in wrong["loc"])
        known = f"; known are {', '.join(model.model_fields)}" if wrong["type"] == "extra_forbidden" else ""
        raise ValueError(f"{where}: {path or 'record'}: {wrong['msg']}{known}") from None


_Raw = tuple[str, int, dict[str, Any]]  # where, number, values by the file's own keys


def _read_csv(data: bytes, name: str, columns: Columns) -> Iterator[_Raw]:
    text = decode(data, name)
    first, _, rest = text.partition("\n")
    skipped, delimiter = 0, ""
    if match := re.fullmatch(r'"?sep=(.)"?\r?', first):  # a line that Excel writes and reads
        skipped, delimiter, text = 1, match[1], rest
    records = _csv_records(text, name, delimiter or _guess_delimiter(text, name, columns), skipped)
    where, header = _first_filled(records)
    # Columns without a name would overwrite each other; the first may be pandas' index.
    keys = [key if key.strip() or not place else f"unnamed:{place}" for place, key in enumerate(header)]
    if header:
        _match_columns(keys, columns, where)
    for number, (where, fields) in enumerate(records, 1):
        yield where, number, _csv_values(keys, fields, where)


def _csv_records(text: str, name: str, delimiter: str, skipped: int = 0) -> Iterator[tuple[str, list[str]]]:
    begin = skipped + 1
    csv.field_size_limit(_CSV_LIMIT)
    lines = io.StringIO(text, newline="")  # splits at \r too, and leaves line ends inside quotes as they are
    try:
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)
        for values in reader:
            yield f"{name}:{begin}", values
            begin = skipped + reader.line_num + 1
    except (csv.Error, TypeError, ValueError) as error:  # the latter two for a delimiter that cannot be one
        raise ValueError(f"{name}:{begin}: not CSV: {error}") from None


def _first_filled(records: Iterator[tuple[str, list[str]]]) -> tuple[str, list[str]]:
    return next((record for record in records if any(value.strip() for value in record[1])), ("", []))


def _csv_values(keys: list[str], fields: list[str], where: str) -> dict[str, str]:
    if any(value.strip() for value in fields[len(keys) :]):
        raise ValueError(
            f"{where}: {len(fields)} fields, more fields than columns ({', '.join(keys)}); quote texts that contain"
            " the separator"
        )
    values = {key: value if value.strip() else "" for key, value in zip(keys, fields, strict=False)}
    return dict.fromkeys(keys, "") | values


def _guess_delimiter(text: str, name: str, columns: Columns) -> str:
    """The separator under which the header has most of the columns: a header that fits none is refused later."""

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            header = _first_filled(_csv_records(text, name, delimiter))[1]
        except ValueError:
            return 0, 0
        return sum(columns.name_of(key) is not None for key in header), len(header)

    return max(_DELIMITERS, key=fit)


def _read_jsonl(data: bytes, name: str, columns: Columns) -> Iterator[_Raw]:
    text = decode(data, name)
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        where = f"{name}:{number}"
        values = parse_json(line, where) if line.strip() else {}
        if not isinstance(values, dict):
            raise ValueError(f"{where}: record: each line must be a JSON object, this is {line.strip()[:40]!r}")
        if line.strip() and not values:  # an object without fields is no blank line
            _match_columns((), columns, where)
        yield where, number, values


def _read_parquet(data: bytes, name: str, columns: Columns) -> Iterator[_Raw]:
    import pyarrow as pa  # not at the top: `prvr --help` reads this module and loads nothing heavy
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        header = file.schema_arrow.names
        _match_columns(header, columns, name)
        others = [item.name for item in file.schema_arrow if not pa.types.is_nested(item.type)]  # not vectors
        for batch in file.iter_batches(columns=[key for key in header if columns.name_of(key) or key in others]):
            for values in batch.to_pylist():
                number += 1
                yield f"{name}: row {number}", number, values
    except pa.ArrowException as error:
        raise ValueError(f"{name}: row {number + 1}: not Parquet: {error}") from None


def _match_columns(keys: Sequence[str], columns: Columns, where: str) -> dict[str, str]:
    """The file's own key -> column."""
    names: dict[str, str] = {}
    for key in keys:
        column = columns.name_of(key)
        if column in names.values():
            first = next(other for other in names if names[other] == column)
            raise ValueError(f"{where}: the column {column} is there twice, as {first!r} and {key!r}")
        if column is not None:
            names[key] = column
    missing = [name for name in columns.required if name not in names.values()]
    if missing:
        found = ", ".join(key or "(no name)" for key in keys) or "none"
        raise ValueError(f"{where}: no column {' and '.join(missing)}; found: {found}; {columns.wanted()}")
    unknown = [key for key in keys if key not in names and not _is_unnamed(key)]
    if unknown and not columns.ignore_others:
        raise ValueError(f"{where}: unknown column {unknown[0]}; {columns.wanted()}")
    return names


def _named_values(values: dict[str, Any], names: dict[str, str], where: str) -> dict[str, Any]:
    """Values by column, without empty ones."""
    filled = {names[key]: value for key, value in values.items() if key in names and value not in (None, "")}
    for column, value in filled.items():
        if isinstance(value, str):
            _check_text(value, f"{where}: {column}")
    return filled


def _check_text(value: str, where: str) -> None:
    if len(value) > MAX_FIELD:
        raise ValueError(f"{where}: longer than the field limit of {MAX_FIELD:,} characters")
    if "\0" in value:
        raise ValueError(f"{where}: a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: half of a surrogate pair, which is no character") from None


def _check_unnamed(values: dict[str, Any], where: str) -> None:
    """Allow what pandas writes: row numbers in a first column without a name, or its index of parquet."""
    for place, (key, value) in enumerate(values.items()):
        is_index = _INDEX.fullmatch(key) or (not place and str(value).strip().isdecimal())
        if _is_unnamed(key) and value not in (None, "") and not is_index:
            text = f"{str(value)[:40]!r} lies in a column without a name"
            raise ValueError(f"{where}: {text}; name the column or delete it")


def _is_other(key: str, value: Any, names: Mapping[str, str]) -> bool:
    return key not in names and not _is_unnamed(key) and value not in (None, "")


def _is_unnamed(key: str) -> bool:
    return _UNNAMED.fullmatch(_plain_key(key)) is not None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return values


def _plain_key(key: str) -> str:
    return re.sub(r"[\s-]+", "_", key.strip()).casefold()


_READERS: dict[str, Callable[[bytes, str, Columns], Iterator[_Raw]]] = {
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}

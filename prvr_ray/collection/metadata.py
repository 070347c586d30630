"""Metadata of videos: other columns of a manifest, with their types, as one JSON object a video.

A value is a string, a number, a boolean, or a timestamp, which is stored as {"timestamp": seconds since the epoch}. A
column has one type; where its values have several, they are strings. Nested values, numbers that are not finite, and
texts too long to filter by, are left out.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

MAX_TEXT = 1000  # characters; longer texts are descriptions
Value = str | float | bool | datetime
_WORDS = {"true": True, "false": False}


def pack_metadata(rows: Sequence[Mapping[str, Any]], *, is_text: bool) -> list[str | None]:
    """Turn the values of a manifest into JSON, one text a row; None for a row without metadata.

    Args:
        is_text: all values are texts, as in csv: they are numbers, booleans or times if all of a column's values are.
            Otherwise only texts in ISO 8601 are converted, to timestamps.
    """
    rows = [{name: _plain_number(value) for name, value in row.items()} for row in rows]
    rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    readers = {name: _choose_reader(values, is_text) for name, values in columns.items()}
    return [_to_json({name: readers[name](value) for name, value in row.items()}) for row in rows]


def unpack_metadata(packed: str | None) -> dict[str, Value]:
    """Read what `pack_metadata` wrote."""
    values = json.loads(packed) if packed else {}
    return {
        name: datetime.fromtimestamp(value["timestamp"], UTC) if isinstance(value, dict) else value
        for name, value in values.items()
    }


def parse_time(text: str) -> datetime:
    """Read a date or time in ISO 8601; without a zone it is UTC.

    Raises:
        ValueError: it is none.
    """
    if "-" not in text[:5]:  # 20240501 is a number
        raise ValueError(f"{text!r} is not a date such as 2024-05-01 or 2024-05-01T12:30")
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def parse_number(text: str) -> float:
    """Read a finite number. Raises ValueError if it is none."""
    number = float(text)
    if not math.isfinite(number) or "_" in text:
        raise ValueError(f"{text!r} is not a number")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def parse_boolean(text: str) -> bool:
    """Read true or false, in any case. Raises ValueError if it is neither."""
    if text.casefold() not in _WORDS:
        raise ValueError(f"{text!r} is neither true nor false")
    return _WORDS[text.casefold()]


def _plain_number(value: Any) -> Any:
    """Decimals as floats, and None for NaN and infinity, which JSON cannot hold.

    Data frames write NaN where a number is missing. As a text it would make its whole column texts, whose order is
    another one: "10" < "9".
    """
    value = float(value) if isinstance(value, Decimal) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _choose_reader(values: Sequence[Any], is_text: bool) -> Callable[[Any], Value | None]:
    """The first reader that can read every value of a column."""
    of_text: list[Callable[[str], Value]] = [parse_number, parse_boolean, parse_time] if is_text else [parse_time]
    for reader in (_as_it_is, *map(_of_text, of_text)):
        try:
            for value in values:
                reader(value)
        except (ValueError, OverflowError):
            continue
        return reader
    return _as_text


def _as_it_is(value: Any) -> Value:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and math.isfinite(value):
        return value
    if isinstance(value, date):
        time = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    raise ValueError(value)


def _of_text(parse: Callable[[str], Value]) -> Callable[[Any], Value]:
    def read(value: Any) -> Value:
        if not isinstance(value, str):
            raise ValueError(value)
        return parse(value.strip())

    return read


def _as_text(value: Any) -> str | None:
    text = str(value)
    is_plain = not isinstance(value, list | dict | bytes) and len(text) <= MAX_TEXT
    return text if is_plain and _is_unicode(text) else None


def _is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_json(values: Mapping[str, Value | None]) -> str | None:
    found = {
        name: {"timestamp": value.timestamp()} if isinstance(value, datetime) else value
        for name, value in values.items()
        if value is not None and _is_unicode(name)
    }
    return json.dumps(found, ensure_ascii=False, sort_keys=True) if found else None

"""Lines and records of text files that users bring; every error names the file and the line."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def read_lines(file: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[str, str]]:
    """Stream the lines of a text file, line ends included.

    Returns:
        Pairs of `file:number`, from 1, and the line.

    Raises:
        ValueError: a line is not in that encoding.
    """
    with file.open("rb") as content:
        for number, raw in enumerate(content, 1):
            try:
                yield f"{file}:{number}", raw.decode(encoding)
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}:{number}: not {error.encoding} ({error.reason})") from None


def read_csv(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Stream the records of a csv file with a header line; empty fields are left out.

    Returns:
        Pairs of `file:number`, the record's last line, and its fields by column.

    Raises:
        ValueError: a quotation mark too many or too few, or more fields than columns.
    """
    reader = csv.DictReader((line for _, line in read_lines(file)), strict=True)
    try:
        for values in reader:
            where = f"{file}:{reader.line_num}"
            if None in values:
                raise ValueError(f"{where}: more fields than columns ({', '.join(reader.fieldnames or [])})")
            yield where, {key: value for key, value in values.items() if value}
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num}: {error}") from None


def parse_json(text: str, where: str) -> Any:
    """Parse JSON. Raises ValueError that begins with `where`."""
    try:
        return json.loads(text)
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

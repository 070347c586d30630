"""Queries as users bring them, in files of four kinds and on standard input, and what may be wrong with them."""

import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prvr_ray.scores.query_files import is_file, read_queries

LONG = "a very long sentence " * 500  # over 10,000 characters


def write(folder, name, content):
    path = folder / name
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(source):
    found = read_queries(source)
    return list(zip(*found.rows.to_pydict().values(), strict=True)), found.num_empty


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.txt", f"a dog\n\n  \n{LONG}\na dog\nein Käse\n"),
        ("q.txt", f"\ufeffa dog\r\n\r\n \r\n{LONG}\r\na dog\r\nein Käse"),
        ("q.TXT", f"a dog\n\n\n{LONG}\n  a dog\t\nein Käse"),
    ],
)
def test_lines_are_questions_and_empty_ones_are_counted(tmp_path, name, content):
    expected = [("line-1", "a dog"), ("line-4", LONG.strip()), ("line-5", "a dog"), ("line-6", "ein Käse")]
    assert read(write(tmp_path, name, content)) == (expected, 2)


ROWS = [
    {"query_id": "b", "text": "a dog"},
    {"query_id": "a", "text": "a dog"},
    {"query_id": "c", "text": ""},
    {"query_id": "", "text": LONG},
    {"query_id": None, "text": None},
    {"query_id": "0", "text": 'a "quoted", comma\nand two lines'},
]


def as_csv(rows):
    lines = [",".join('"{}"'.format((row[name] or "").replace('"', '""')) for name in row) for row in rows]
    return "\n".join([",".join(rows[0]), *lines]) + "\n"


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "make"), [("q.csv", as_csv), ("q.jsonl", as_jsonl), ("q.parquet", pa.Table.from_pylist)]
)
def test_rows_keep_their_ids_or_are_called_after_their_place(tmp_path, name, make):
    place = "line-4" if name == "q.jsonl" else "row-4"
    expected = [("0", ROWS[5]["text"]), ("a", "a dog"), ("b", "a dog"), (place, LONG.strip())]
    assert read(write(tmp_path, name, make(ROWS))) == (expected, 2)
    only_texts = [{"text": row["text"]} for row in ROWS]
    found, num_empty = read(write(tmp_path, name, make(only_texts)))
    assert [text for _, text in found] == ["a dog", "a dog", LONG.strip(), ROWS[5]["text"]]
    assert num_empty == 2


def test_an_id_may_be_a_number_zero_included(tmp_path):
    rows = [{"query_id": number, "text": f"text {number}"} for number in range(3)]
    expected = [("0", "text 0"), ("1", "text 1"), ("2", "text 2")]
    for name, make in (("q.jsonl", as_jsonl), ("q.parquet", pa.Table.from_pylist)):
        assert read(write(tmp_path, name, make(rows))) == (expected, 0)


def test_blank_lines_of_a_table_are_counted(tmp_path):
    assert read(write(tmp_path, "q.csv", "text\na dog\n\n\na cat\n"))[1] == 2
    assert read(write(tmp_path, "q.jsonl", '{"text": "a dog"}\n\n{"text": "a cat"}\n \n'))[1] == 2


def test_many_lines_sort_as_they_stand(tmp_path):
    found, _ = read(write(tmp_path, "q.txt", "".join(f"text {n}\n" for n in range(1, 1201))))
    assert [text for _, text in found] == [f"text {n}" for n in range(1, 1201)]


def test_standard_input_is_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a dog\n\nein Käse\n".encode())))
    assert is_file("-")
    assert read("-") == ([("line-1", "a dog"), ("line-3", "ein Käse")], 1)


UNUSABLE = [
    ("q.txt", "", "holds no text: 0 empty"),
    ("q.txt", "\n \n\t\n", "holds no text: 3 empty"),
    ("q.txt", "ein Käse".encode("latin-1"), "q.txt:1: not UTF-8"),
    ("q.txt", "a dog".encode("utf-16"), "q.txt:1: not UTF-8"),
    ("q.txt", "a dog".encode("utf-16-le"), "q.txt:1: a NUL character"),
    ("q.csv", "", "holds no text"),
    ("q.csv", "text\n", "holds no text: 0 empty"),
    ("q.csv", "query_id,text\n1,\n2,\n", "holds no text: 2 empty"),
    ("q.csv", "caption\na dog\n", "q.csv:1: no column text; found: caption; wanted: text; optional: query_id"),
    (
        "q.csv",
        "text\na man runs, then falls\n",
        "q.csv:2: 2 fields, more fields than columns (text); quote texts that contain the separator",
    ),
    ("q.csv", 'text\na cat\n"a dog\n', "q.csv:3: not CSV"),
    ("q.csv", "text\nKäse\n".encode("latin-1"), "q.csv:2: not UTF-8"),
    ("q.csv", "query_id,text\n7,a dog\n7,a cat\n", "query_id '7' occurs twice"),
    ("q.jsonl", '{"text": "a dog"}\n{"text": \n', "q.jsonl:2: not JSON"),
    (
        "q.jsonl",
        '{"caption": "a dog"}\n',
        "q.jsonl:1: no column text; found: caption; wanted: text; optional: query_id",
    ),
    ("q.jsonl", '["a dog"]\n', "q.jsonl:1: record: each line must be a JSON object"),
    ("q.jsonl", '{"text": 7}\n', "q.jsonl:1: text is 7, not a string"),
    ("q.jsonl", '{"text": 0}\n', "q.jsonl:1: text is 0, not a string"),
    ("q.jsonl", '{"text": "\\ud800"}\n', "q.jsonl:1: text: half of a surrogate pair"),
    ("q.jsonl", "[" * 100_000 + "\n", "q.jsonl:1: not JSON: maximum recursion"),
    ("q.parquet", b"PAR1 and nothing more", "q.parquet: "),
    ("q.parquet", pa.table({"caption": ["a dog"]}), "q.parquet: no column text; found: caption"),
    ("q.parquet", pa.table({"text": [1, 2]}), "q.parquet: row 1: text is 1, not a string"),
    ("q.parquet", pa.table({"text": pa.array([None, ""], pa.string())}), "holds no text: 2 empty"),
]


@pytest.mark.parametrize(("name", "content", "said"), UNUSABLE)
def test_an_unusable_file_is_refused_with_its_reason(tmp_path, name, content, said):
    source = write(tmp_path, name, content)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        read_queries(source)
    assert said in str(refusal.value)
    assert str(refusal.value).startswith(source)


def test_a_file_that_is_not_there_and_empty_input_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"there is no file .*none\.csv"):
        read_queries(str(tmp_path / "none.csv"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(ValueError, match="standard input holds no text"):
        read_queries("-")


def test_other_names_are_splits():
    assert not any(is_file(name) for name in ("test", "my.split", "queries.tsv"))

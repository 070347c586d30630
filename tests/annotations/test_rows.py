"""The one row reader: what people's programs write is read alike in all three formats, or refused by name and line."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prvr_ray.annotations.rows import MAX_FIELD, Columns, kind_of, read_rows

COLUMNS = Columns(("text", "video_id"), ("split",), aliases={"caption": "text"})
ROWS = [{"text": "a dog", "video_id": "a.mp4"}, {"text": "ein Käse, frisch", "video_id": "b.mp4"}]


def read(content, kind="csv", columns=COLUMNS):
    data = content if isinstance(content, bytes) else content.encode()
    return [row.values for row in read_rows(data, f"f.{kind}", kind, columns)]


def as_parquet(rows, **columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows) if rows else pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "content",
    [
        'text,video_id\na dog,a.mp4\n"ein Käse, frisch",b.mp4\n',
        '\ufefftext,video_id\r\na dog,a.mp4\r\n"ein Käse, frisch",b.mp4\r\n',
        "sep=;\ntext;video_id\na dog;a.mp4\nein Käse, frisch;b.mp4\n",
        "\ufeffsep=;\r\ntext;video_id\r\na dog;a.mp4\r\nein Käse, frisch;b.mp4\r\n",
        "text;video_id\na dog;a.mp4\nein Käse, frisch;b.mp4",
        "text\tvideo_id\na dog\ta.mp4\nein Käse, frisch\tb.mp4\n",
        'Text , Video_ID\na dog, a.mp4\n"ein Käse, frisch", b.mp4\n',
        'CAPTION,Video ID\na dog,a.mp4\n"ein Käse, frisch",b.mp4\n',
        ',text,video_id\n0,a dog,a.mp4\n1,"ein Käse, frisch",b.mp4\n',
        'Unnamed: 0,text,video_id\n0,a dog,a.mp4\n1,"ein Käse, frisch",b.mp4\n',
        'text,video_id,split,,\na dog,a.mp4,,,\n"ein Käse, frisch",b.mp4,"",,\n',
        'text,video_id\ra dog,a.mp4\r"ein Käse, frisch",b.mp4\r',
    ],
    ids=[
        "plain",
        "excel",
        "sep",
        "bom-sep",
        "semicolon",
        "tab",
        "spaces",
        "titles",
        "index",
        "unnamed",
        "empty",
        "mac",
    ],
)
def test_csv_that_has_one_meaning_is_read(content):
    assert read(content) == ROWS


def test_blank_rows_have_no_values_and_keep_their_numbers():
    rows = list(read_rows(b"\n,\ntext,video_id\n,\n\na dog,a\n , \n", "f.csv", "csv", COLUMNS))
    assert [row.values for row in rows] == [{}, {}, {"text": "a dog", "video_id": "a"}, {}]
    assert [(row.where, row.number) for row in rows] == [(f"f.csv:{n + 3}", n) for n in (1, 2, 3, 4)]
    rows = list(read_rows(b'\n{"text": "a", "video_id": "v"}\n \n', "f.jsonl", "jsonl", COLUMNS))
    assert [(row.where, row.number, len(row.values)) for row in rows] == [
        ("f.jsonl:1", 1, 0), ("f.jsonl:2", 2, 2), ("f.jsonl:3", 3, 0),
    ]  # fmt: skip


def test_a_record_of_several_lines_is_named_by_its_first():
    content = b'text,video_id\n"two\nlines",a\nb,c,d\n'
    rows = read_rows(content, "f.csv", "csv", COLUMNS)
    assert next(rows).values == {"text": "two\nlines", "video_id": "a"}
    with pytest.raises(ValueError, match=r"^f\.csv:4: 3 fields"):
        next(rows)


def test_the_three_formats_obey_one_rule():
    rows = [
        {"Video_ID": "a.mp4", "Caption": "a dog", "split": ""},
        {"Video_ID": "b.mp4", "Caption": "", "split": "val"},
    ]
    expected = [{"video_id": "a.mp4", "text": "a dog"}, {"video_id": "b.mp4", "split": "val"}]
    as_jsonl = "".join(json.dumps(row) + "\n" for row in rows)
    as_csv = "Video_ID,Caption,split\n" + "".join(",".join(row.values()) + "\n" for row in rows)
    assert read(as_csv) == read(as_jsonl, "jsonl") == read(as_parquet(rows), "parquet") == expected


def test_the_index_of_pandas_is_no_column():
    table = as_parquet([{"text": "a dog", "video_id": "a.mp4", "__index_level_0__": 7}])
    assert read(table, "parquet") == ROWS[:1]


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("csv", "text,video_id\na,\ud800\n".encode("utf-8", "surrogatepass"), "f.csv:2: not UTF-8"),
        ("csv", "text,video_id\na,b\n".encode("utf-16"), "f.csv:1: not UTF-8"),
        ("csv", "text,video_id\na,b\n".encode("utf-16-le"), "f.csv:1: a NUL character: .*UTF-16"),
        ("csv", "text,video_id\na,b\nc\0,d\n", "f.csv:3: a NUL character"),
        ("csv", "text,video_id\na,b\n" + "x" * (MAX_FIELD + 1) + ",c\n", r"f\.csv:3: text: longer than the"),
        ("csv", 'text,video_id\n"a,b\nc,d\n', "f.csv:2: not CSV: unexpected end of data"),
        ("csv", "text,video_id,Text\na,b,c\n", "f.csv:1: the column text is there twice, as 'text' and 'Text'"),
        ("csv", "text,caption,video_id\na,b,c\n", "f.csv:1: the column text is there twice, as 'text' and 'caption'"),
        ("csv", "a dog,a.mp4\n", "f.csv:1: no column text and video_id; found: a dog, a.mp4; wanted: text or caption"),
        ("csv", "sep=|\ntext;video_id\na;b\n", "f.csv:2: no column text and video_id; found: text;video_id"),
        ("csv", "text|video_id\na|b\n", r"f.csv:1: no column text and video_id; found: text\|video_id"),
        ("csv", "text,video_id,start\na,b,1\n", "f.csv:1: unknown column start; wanted: .*optional: split"),
        ("csv", "text,video_id,\na,b,note\n", "f.csv:2: 'note' lies in a column without a name"),
        ("csv", ",text,video_id\nold,a,b\n", "f.csv:2: 'old' lies in a column without a name"),
        ("csv", "text,video_id,,\na,b,c,d\n", "f.csv:2: 'c' lies in a column without a name"),
        ("jsonl", '{"text": "\\ud800", "video_id": "b"}', "f.jsonl:1: text: half of a surrogate pair"),
        ("jsonl", '{"text": "a", "video_id": "\\u0000"}', "f.jsonl:1: video_id: a NUL character"),
        ("jsonl", json.dumps({"text": "x" * (MAX_FIELD + 1), "video_id": "b"}), "f.jsonl:1: text: .*field limit"),
        ("jsonl", '{"text": "a", "video_id": "b"}\n{}\n', "f.jsonl:2: no column text and video_id; found: none"),
        ("jsonl", '{"text": "a", "text": "b", "video_id": "c"}', "f.jsonl:1: not JSON: the key 'text' is there twice"),
        ("jsonl", '[{"text": "a", "video_id": "b"}]', "f.jsonl:1: record: each line must be a JSON object"),
        ("jsonl", '{"text": "a", "video_id": "b", "Text": "c"}', "f.jsonl:1: the column text is there twice"),
        ("parquet", as_parquet([], text=["a"]), "f.parquet: no column video_id; found: text"),
        ("parquet", as_parquet([], text=["a\0"], video_id=["b"]), "f.parquet: row 1: text: a NUL character"),
        ("parquet", b"PAR1 and nothing more", "f.parquet: row 1: not Parquet"),
    ],
)  # fmt: skip
def test_what_has_no_one_meaning_is_refused_by_file_and_line(kind, content, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        read(content, kind)


def test_other_columns_are_ignored_where_the_caller_says_so():
    columns = Columns(("text",), ignore_others=True)
    assert read("text,note,\na dog,x,y\n", columns=columns) == [{"text": "a dog"}]


def test_an_empty_file_has_no_rows():
    assert read("") == read("\n\n") == read("", "jsonl") == []
    assert read("text,video_id\n") == []


def test_a_file_s_ending_says_its_format():
    assert [kind_of(name) for name in ("a.CSV", "s3://b/a.jsonl", "a.parquet", "csv", "a.txt")] == [
        "csv", "jsonl", "parquet", None, None,
    ]  # fmt: skip


def test_a_line_ends_only_where_the_format_says():
    text = "a\u2028b\u2029c\x85d\x0be\x0cf"  # ends of lines for str.splitlines, not for JSON or csv
    expected = [{"text": text, "video_id": "v"}, {"text": "next", "video_id": "v"}]
    as_jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in expected)
    assert read(as_jsonl, "jsonl") == read(f"text,video_id\n{text},v\nnext,v\n") == expected

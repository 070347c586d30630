"""Filters on the columns that a manifest gives its videos, against plain Python."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from support import collection_rows as make

from prvr_ray import schema
from prvr_ray.collection.filters import matching_videos, parse_filter
from prvr_ray.collection.metadata import pack_metadata, unpack_metadata

ROWS = [
    {"camera": "front", "length_m": "2.5", "indoors": "true", "recorded": "2024-05-01", "place": "the 'old' pier"},
    {"camera": "back", "length_m": "10", "indoors": "FALSE", "recorded": "2024-05-01T12:30:00+02:00", "place": "Köln"},
    {"camera": "front", "length_m": "-3e1", "indoors": "true", "recorded": "2023-12-31T23:59", "place": 'say "hi"'},
    {"camera": "top", "recorded": "2025-01-01"},
    {},
]


def videos(rows=ROWS, is_text=True):
    packed = pack_metadata(rows, is_text=is_text)
    lines = [make.video(f"v{n}", metadata=value, split="test" if n else "train") for n, value in enumerate(packed)]
    return pa.Table.from_pylist(lines, schema.VIDEOS)


def found(*filters, table=None):
    return matching_videos(videos() if table is None else table, filters).to_pylist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("camera = front", ["v0", "v2"]),
        ("camera != front", ["v1", "v3"]),  # v4 has no camera
        ("camera in (back, 'top')", ["v1", "v3"]),
        ("camera >= front", ["v0", "v2", "v3"]),
        ("length_m = 2.5", ["v0"]),
        ("length_m<10", ["v0", "v2"]),
        ("length_m in (10, -30)", ["v1", "v2"]),
        ("indoors = true", ["v0", "v2"]),
        ("indoors != True", ["v1"]),
        ("recorded >= 2024-05-01", ["v0", "v1", "v3"]),
        ("recorded > 2024-05-01T10:00", ["v1", "v3"]),  # 12:30 in a zone two hours ahead
        ("recorded < '2024-01-01'", ["v2"]),
        ("place = 'the ''old'' pier'", ["v0"]),
        ("place = \"the 'old' pier\"", ["v0"]),
        ("place = Köln", ["v1"]),
        ('place = "say ""hi"""', ["v2"]),
        ("video_id in (v3, v4, v9)", ["v3", "v4"]),
        ("split = train", ["v0"]),
        ("  'camera'  =  'front'  ", ["v0", "v2"]),
    ],
)
def test_a_filter_keeps_what_it_says(text, expected):
    assert found(text) == expected


def test_all_filters_must_match():
    assert found("camera = front", "length_m > 0") == ["v0"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("camera", "is not COLUMN OP VALUE"),
        ("camera = ", "is not COLUMN OP VALUE"),
        ("camera == front", "is not COLUMN OP VALUE"),
        ("camera = a or camera = b", "is not COLUMN OP VALUE"),
        ("camera in front", "is not COLUMN OP VALUE"),
        ("camera in ()", "is not COLUMN OP VALUE"),
        ("camera = 'front", "is not COLUMN OP VALUE"),
        ("__import__('os').system('true')", "is not COLUMN OP VALUE"),
        ("colour = red", "no video has a column 'colour'; there are video_id, split, duration_s, camera, indoors"),
        ("length_m = long", "length_m holds numbers, not 'long'"),
        ("length_m = '2.5'", "length_m holds numbers, not the text '2.5'"),
        ("length_m = nan", "length_m holds numbers"),
        ("indoors > true", "indoors is true or false; use = or !="),
        ("indoors = 1", "indoors holds true or false, not '1'"),
        ("recorded > yesterday", "recorded holds dates or times, not 'yesterday'"),
        ("camera = nowhere", "leaves 0 of 5 videos"),
    ],
)
def test_an_unusable_filter_is_refused_in_one_line(text, words):
    with pytest.raises(ValueError, match=r"filter|leaves") as refused:
        found(text)
    assert words in str(refused.value)


def test_columns_of_csv_have_the_type_of_all_their_values():
    rows = [{"n": "1", "mixed": "1", "when": "2024-05-01"}, {"n": "2.5", "mixed": "x", "when": "soon"}]
    first, second = map(unpack_metadata, pack_metadata(rows, is_text=True))
    assert first == {"n": 1, "mixed": "1", "when": "2024-05-01"}
    assert second == {"n": 2.5, "mixed": "x", "when": "soon"}


def test_values_of_jsonl_and_parquet_keep_their_types():
    rows = [
        {"text": "1", "number": 3, "flag": False, "day": date(2024, 5, 1), "time": "2024-05-01T10:00Z"},
        {"text": "2", "number": 2.5, "flag": True, "day": datetime(2024, 5, 2, 12, tzinfo=UTC)},
        {"nested": {"a": 1}, "vector": [1.0], "bytes": b"x", "half": "\ud800", "long": "x" * 1001, "nan": float("nan")},
    ]
    first, second, third = map(unpack_metadata, pack_metadata(rows, is_text=False))
    times = datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 1, 10, tzinfo=UTC)
    assert first == {"text": "1", "number": 3, "flag": False, "day": times[0], "time": times[1]}
    assert second == {"text": "2", "number": 2.5, "flag": True, "day": datetime(2024, 5, 2, 12, tzinfo=UTC)}
    assert third == {}


@pytest.mark.parametrize("missing", [float("nan"), float("inf"), -float("inf"), None])
def test_a_number_that_is_missing_leaves_its_column_numbers(missing):
    table = videos([{"length_m": 9.0}, {"length_m": 10.0}, {"length_m": missing}], is_text=False)
    assert found("length_m > 9.5", table=table) == ["v1"]  # as texts "10.0" < "9.5" < "nan"


def test_decimals_are_numbers():
    table = videos([{"length_m": Decimal("9.50")}, {"length_m": Decimal(10)}, {"length_m": 8}], is_text=False)
    assert found("length_m > 9", table=table) == ["v0", "v1"]


def test_metadata_is_plain_json():
    [packed] = pack_metadata([{"ü": "ä", "n": "3", "t": "1970-01-02"}], is_text=True)
    assert json.loads(packed) == {"ü": "ä", "n": 3, "t": {"timestamp": 86400.0}}
    assert pack_metadata([{}], is_text=True) == [None]


def test_columns_of_two_manifests_may_differ_in_type():
    table = videos([{"take": "3"}]), videos([{"take": "b"}])
    assert found("take = b", table=pa.concat_tables(table)) == ["v0"]
    assert found("take = 3", table=pa.concat_tables(table)) == ["v0"]


def test_a_parsed_filter_is_a_value():
    item = parse_filter("camera in (a, 'b c')")
    assert (item.column, item.op, item.values) == ("camera", "in", (("a", False), ("b c", True)))

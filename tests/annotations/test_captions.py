"""Caption files: the real ones with the counts of their README, and every way in which a line can be wrong."""

import csv
import json

import pytest

from prvr_ray.annotations.captions import COLUMNS, LAYOUTS, read_annotations


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def moments(query):
    return [(moment["video_id"], moment["start_s"], moment["end_s"]) for moment in query["moments"]]


@pytest.mark.parametrize(
    ("layout", "files", "num_videos", "num_queries", "defects"),
    [
        # counts as the README of the files states them
        ("charades-sta", "charades_sta_train.txt", 5338, 12408, {"start_after_end": 4, "past_the_end": 1803}),
        ("charades-sta", "charades_sta_test.txt", 1334, 3720, {"past_the_end": 561}),
        ("activitynet-captions", "", 4917, 17505, {}),
        ("tvr", "", 2179, 10895, {}),
        ("qvhighlights", "", 1519, 1550, {}),
    ],
)
def test_real_files_have_the_counts_of_their_readme(test_data, layout, files, num_videos, num_queries, defects):
    read = read_annotations(layout, test_data / "annotations" / files)
    assert len(read.queries) == num_queries
    assert len({video_id for query in read.queries for video_id in query["video_ids"]}) == num_videos
    assert read.defects == defects
    assert read.without_text == []
    assert sum(len(query["moments"]) for query in read.queries) == read.num_windows - read.num_dropped
    assert {query["split"] for query in read.queries} == {"train" if "train" in files else "test" if files else "val"}


def test_the_windows_dropped_from_charades_are_those_that_its_lengths_rule_out(test_data):
    folder = test_data / "annotations"
    with (folder / "Charades_v1_train.csv").open(newline="") as file:
        hundredths = {row["id"]: round(float(row["length"]) * 100) for row in csv.DictReader(file)}
    expected = []
    for line in (folder / "charades_sta_train.txt").read_text().splitlines():
        video_id, start, end = line.split("##")[0].split()
        low, high = (round(float(value) * 100) for value in (start, end))
        is_good = low < high <= hundredths[video_id] + 1
        expected.append([(video_id, float(start), float(end))] if is_good else [])
    read = read_annotations("charades-sta", folder / "charades_sta_train.txt")
    assert [moments(query) for query in read.queries] == expected
    assert read.num_dropped == expected.count([])


def test_query_ids_of_real_files_are_unique_and_those_of_the_publisher_where_there_are_any(test_data):
    for layout in ("charades-sta", "activitynet-captions", "tvr", "qvhighlights"):
        ids = [query["query_id"] for query in read_annotations(layout, test_data / "annotations").queries]
        assert len(set(ids)) == len(ids)
    assert "2579" in ids


def test_a_query_of_highlights_keeps_all_its_windows(test_data):
    expected = {}
    for line in (test_data / "annotations" / "qvhighlights_val_release.jsonl").read_text().splitlines():
        row = json.loads(line)
        expected[str(row["qid"])] = [(row["vid"], *window) for window in row["relevant_windows"]]
    read = read_annotations("qvhighlights", test_data / "annotations")
    assert {query["query_id"]: moments(query) for query in read.queries} == expected
    assert max(len(windows) for windows in expected.values()) > 1


def test_captions_of_the_real_videos_are_read_under_their_own_column_names(test_data):
    read = read_annotations("jsonl", test_data / "videos" / "captions.jsonl")
    assert len(read.queries) == 11
    assert sum(len(query["moments"]) for query in read.queries) == 6
    assert read.queries[0]["video_ids"] == ["labelled/asl_milk.mkv"]


def test_the_examples_of_the_help_text_are_read_alike(tmp_path):
    in_csv = COLUMNS.split("example, captions.csv:\n")[1].split("example")[0]
    in_jsonl = COLUMNS.split("example, captions.jsonl:\n")[1]
    write(tmp_path / "captions.csv", *(line.strip() for line in in_csv.splitlines()))
    write(tmp_path / "captions.jsonl", in_jsonl.strip())
    from_csv = read_annotations("csv", tmp_path)
    assert from_csv == read_annotations("jsonl", tmp_path)
    assert from_csv.queries == [
        {
            "query_id": "captions/kitchen/a.mp4#0",
            "text": "a person opens a fridge",
            "split": None,
            "video_ids": ["kitchen/a.mp4"],
            "moments": [{"video_id": "kitchen/a.mp4", "start_s": 12.5, "end_s": 20.1}],
        }
    ]


def test_rows_of_one_query_id_are_one_query_with_all_its_videos_and_moments(tmp_path):
    file = write(
        tmp_path / "captions.csv",
        "query_id,text,video_id,start_s,end_s,split",
        'q1,"a dog, running",a,1,2,val',
        "q2,a cat,a,,,val",
        'q1,"a dog,  running ",b,3,4,val',
        'q1,"a dog, running",b,5,6,val',
        'q1,"a dog, running",b,5,6,val',
    )
    first, second = read_annotations("csv", file).queries
    assert (first["text"], first["video_ids"], first["split"]) == ("a dog, running", ["a", "b"], "val")
    assert moments(first) == [("a", 1, 2), ("b", 3, 4), ("b", 5, 6)]
    assert (second["video_ids"], second["moments"]) == (["a"], [])


def test_made_up_ids_count_through_all_files_of_one_name(tmp_path):
    for part in ("val_1", "val_2"):
        row = {"duration": 9, "timestamps": [[0, 1], [2, 3]], "sentences": [f"{part} one", f"{part} two"]}
        (tmp_path / f"{part}.json").write_text(json.dumps({"v": row}))
    ids = [query["query_id"] for query in read_annotations("activitynet-captions", tmp_path).queries]
    assert ids == ["val_1/v#0", "val_1/v#1", "val_2/v#0", "val_2/v#1"]
    named = read_annotations("activitynet-captions", tmp_path, "anet").queries
    assert [(query["query_id"], query["split"]) for query in named] == [(f"anet/v#{n}", "val") for n in range(4)]


def test_defective_windows_are_counted_by_kind_and_their_queries_stay(tmp_path):
    windows = [(5, 3), (4, 4), (-1, 2), (3, 10.02), (12, 11), (3, 10.01), (0, 10)]
    lines = [
        json.dumps({"text": f"t{n}", "video_id": "v", "start_s": start, "end_s": end, "duration_s": 10.0})
        for n, (start, end) in enumerate(windows)
    ]
    read = read_annotations("jsonl", write(tmp_path / "a.jsonl", *lines))
    assert [len(query["moments"]) for query in read.queries] == [0, 0, 0, 0, 0, 1, 1]
    assert read.defects == {"start_after_end": 2, "zero_length": 1, "negative": 1, "past_the_end": 2}
    assert (read.num_windows, read.num_dropped) == (7, 5)


def test_a_line_without_text_is_left_out_and_named(tmp_path):
    file = write(tmp_path / "a.csv", "video_id,text", "v,one", 'v," "', "v,two")
    read = read_annotations("csv", file)
    assert [query["text"] for query in read.queries] == ["one", "two"]
    assert read.without_text == [f"{file}:3"]


@pytest.mark.parametrize(
    ("layout", "lines", "said"),
    [
        ("jsonl", ['{"text": "a", "video_id": "v"}', "", '{"text": "a", '], ":3: not JSON"),
        ("jsonl", ['{"text": "a", "video_id": "v"}', "[" * 100_000], ":2: not JSON"),
        ("jsonl", ['["a"]'], ":1: record: each line must be a JSON object"),
        ("jsonl", ['{"text": "a"}'], ":1: no column video_id; found: text; wanted: text or caption, video_id or file"),
        ("jsonl", ['{"text": "a", "video_id": "v", "start": 3}'], ":1: unknown column start; wanted: .*start_s, end_s"),
        ("jsonl", ['{"text": "a", "video_id": "v", "start_s": 3}'], ":1: start_s and end_s: give both"),
        ("jsonl", ['{"text": "a", "video_id": "v", "start_s": NaN, "end_s": 3}'], ":1: start_s: .*finite"),
        ("jsonl", ['{"text": "a", "video_id": "v", "start_s": "soon", "end_s": 3}'], ":1: start_s: .*number"),
        ("csv", ["text,video_id", "a,v", 'b,"v'], ":3: not CSV: unexpected end of data"),
        ("csv", ["text,video_id", "a,v,w"], r":2: 3 fields, more fields than columns \(text, video_id\); quote texts"),
        ("csv", ["text,video_id", "a"], ":2: video_id: Field required"),
        ("csv", ["words,video_id", "a,v"], ":1: no column text; found: words, video_id; wanted: text or caption"),
        ("csv", ["query_id,text,video_id", "q,a,v", "q,b,v"], ":3: query 'q' had text 'a' before, now 'b'"),
        ("csv", ["query_id,text,video_id,split", "q,a,v,val", "q,a,w,test"], ":3: query 'q' had split 'val'"),
        ("csv", ["text,video_id"], "no captions in"),
        ("tvr", ['{"vid_name": "v", "duration": 9, "ts": [1], "desc": "a", "desc_id": 1}'], ":1: ts"),
        ("qvhighlights", ['{"vid": "v", "duration": 9, "qid": 1}'], ":1: query: Field required"),
        ("charades-sta", ["V 0.0 1.0##a", "V 0.0##a"], ":2: expected VIDEO START END##sentence"),
        ("charades-sta", ["V 0.0 1.0 a"], ":1: expected VIDEO START END##sentence"),
        ("charades-sta", ["V zero 1.0##a"], ":1: start: .*number"),
        (
            "activitynet-captions",
            ['{"v": {"duration": 9, "timestamps": [[0, 1]], "sentences": []}}'],
            "video 'v': 1 time",
        ),
        ("activitynet-captions", ["{", '"v": {"duration": "x"}}'], "video 'v': duration"),
        ("activitynet-captions", ["[]"], "expected an object of videos"),
        ("activitynet-captions", ['{"v":', "]"], "not JSON: .*line 2"),
    ],
)
def test_a_malformed_line_is_an_error_that_names_it(tmp_path, layout, lines, said):
    file = write(tmp_path / "labels.txt", *lines)
    with pytest.raises(ValueError, match=said) as raised:
        read_annotations(layout, file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("layout", ["jsonl", "csv", "charades-sta"])
def test_bytes_that_are_not_utf8_are_an_error_that_names_the_line(tmp_path, layout):
    file = tmp_path / "labels"
    file.write_bytes({"jsonl": b"", "csv": b"text,video_id\n", "charades-sta": b""}[layout] + b"\n\xff\xfe\n")
    with pytest.raises(ValueError, match=f"labels:{3 if layout == 'csv' else 2}: not UTF-8"):
        read_annotations(layout, file)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,video_id\r\na b,v\r\n")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a b", "video_id": "v"}\r\n')
    assert read_annotations("csv", tmp_path).queries == read_annotations("jsonl", tmp_path).queries


def test_unknown_layouts_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown layout 'msrvtt'; one of jsonl, csv"):
        read_annotations("msrvtt", tmp_path)
    for layout, kind in LAYOUTS.items():
        with pytest.raises(ValueError, match="no such file") as raised:
            read_annotations(layout, tmp_path / "nowhere")
        assert kind.patterns[0] in str(raised.value)


def test_a_captions_own_split_goes_before_that_of_its_files_name(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = [{"video_id": "a", "text": "one", "split": "test"}, {"video_id": "b", "text": "two"}]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    queries = read_annotations("jsonl", path).queries
    assert {query["text"]: query["split"] for query in queries} == {"one": "test", "two": "train"}

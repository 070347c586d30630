"""What commands print last: in a pipe of 80 columns nothing is cut, and names are text, never markup."""

import re

import pytest

from prvr_ray.cli import tables

FIGURES = {"r1": 12.34, "r5": 36, "r10": 45.4, "r100": 93.1, "sumr": 186.9, "medr": 13, "meanr": 30.4, "map": 0.2391}
FOLDER = "s3://a-bucket/" + "with-a-long-prefix/" * 8 + "runs/first"


@pytest.fixture
def printed(capsys):
    """Prints with one of the functions and gives the lines."""

    def show(function, summary: dict) -> list[str]:
        function(summary)
        return capsys.readouterr().out.splitlines()

    return show


def test_a_summary_has_a_line_for_each_count_and_the_whole_path_last(printed):
    counts = {"videos": {"total": 3, "by_error_class": {"decode": 1}}, "exit_code": 1, "seconds": 2.5, "output": FOLDER}
    lines = printed(tables.show_summary, counts)
    assert [line.split() for line in lines] == [
        ["videos.total", "3"],
        ["videos.by", "error", "class.decode", "1"],
        ["seconds", "2.5"],
        ["output:", FOLDER],
    ]


def test_names_are_shown_as_they_are(printed):
    left_out = {"left_out": {"[red]videos": "1: [/b]/a[bold].mp4"}, "missing": ["No [x]: `a`.", "No b."]}
    lines = printed(tables.show_summary, left_out)
    assert [line.rpartition("  ")[2].strip() for line in map(str.rstrip, lines)] == [
        "1: [/b]/a[bold].mp4",
        "No [x]: `a`.",
        "No b.",
    ]
    assert "[red]videos" in lines[0]


def test_a_long_value_is_folded_and_whole(printed):
    lines = printed(tables.show_summary, {"left_out": "v" * 200})
    assert max(map(len, lines)) <= 80
    assert "".join(lines).count("v") == 200


def test_an_evaluation_has_all_its_figures_within_80_columns(printed):
    evaluation = {
        "split": "test",
        "protocol": "held-out",
        "rows": {"teacher": FIGURES | {"medr": 10_417.0}, "fused": FIGURES, "teacher+student": FIGURES},
        "by_ratio": {"0.0-0.2": {**FIGURES, "queries": 3}},
        "moments": {"r1_iou0.3": 79.84, "r1_iou0.5": 71.9},
        "warning": "the student is below",
        "output": FOLDER,
    }
    *table, caption, moments, warning, output = printed(tables.show_evaluation, evaluation)
    for title in ("R@1", "R@5", "R@10", "R@100", "SumR", "MedR", "MeanR", "mAP"):
        assert title in table[2]
    rows = {cells[0]: cells[1:] for cells in (re.split(r"\s*│\s*", line.strip("│ ")) for line in table)}
    assert rows["teacher+student"] == ["12.3", "36.0", "45.4", "93.1", "186.9", "13.0", "30.4", "0.239"]
    assert rows["M/V 0.0-0.2"] == rows["fused"] == rows["teacher+student"]
    assert rows["teacher"][5] == "10417"
    assert max(map(len, table)) <= 80
    assert caption.strip() == "M/V: the fused row by moment-to-video ratio"
    assert moments == "moments found in the relevant video, R@1: 79.8 % at IoU 0.3, 71.9 % at IoU 0.5"
    assert warning == "warning: the student is below"
    assert output == f"output: {FOLDER}"


def test_the_demo_ends_with_its_table_and_its_report(printed):
    evaluation = {"split": "test", "protocol": "held-out", "rows": {"fused": FIGURES}, "output": "x"}
    answer = {"rank": 1, "video_id": "asked.mp4", "start_s": 3.0, "end_s": 4.0, "score": 0.5}
    asked = {"query": "a circle", "answers": [answer]}
    lines = printed(tables.show_demo, {"ask_teacher": asked, "evaluate": evaluation, "report": {"output": FOLDER}})
    assert any("186.9" in line for line in lines)
    assert any("asked.mp4" in line for line in lines)
    assert lines[-1] == f"report: {FOLDER}"
    assert "output: x" not in lines


def test_answers_show_rank_moment_and_score(printed):
    answer = {"rank": 1, "video_id": "a/[b].mp4", "start_s": 3.0, "end_s": 4.25, "peak_s": 3.5, "score": 0.5}
    shown = "\n".join(printed(tables.show_answers, {"query": "[what] is it", "answers": [answer]}))
    assert "[what] is it" in shown
    assert "a/[b].mp4" in shown
    assert "3.0-4.2" in shown

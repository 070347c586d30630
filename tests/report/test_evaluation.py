"""What is said of an evaluation: figures against a slow count, sentences against what the intervals allow."""

import numpy as np
import pyarrow as pa
import pytest

from prvr_ray import schema
from prvr_ray.collection import open_collection
from prvr_ray.report.evaluation import MEANS, Bootstrap, Evaluation, gap, read_evaluation
from prvr_ray.report.page import Table
from prvr_ray.report.recall import beat_teacher, recall_section, what_helped, where_it_fails
from prvr_ray.storage import put_json, table_to_bytes

HOW = Bootstrap(num_resamples=500, confidence=0.95, seed=0)


def evaluation(ratios=None, **ranks) -> Evaluation:
    """An evaluation of one relevant video a query."""
    num = len(next(iter(ranks.values())))
    ids = [f"q{index:03d}" for index in range(num)]
    ratios = np.full(num, np.nan) if ratios is None else np.asarray(ratios, dtype=float)
    columns = {row: [np.array([rank]) for rank in of_row] for row, of_row in ranks.items()}
    return Evaluation("a", "test", "held-out", ids, ids, ratios, columns)


def test_values_of_a_query_are_counted_by_hand():
    one = Evaluation("a", "test", "held-out", ["q"], ["v"], np.array([0.1]), {"fused": [np.array([1, 7])]})
    values = dict(zip(MEANS, one.values_QM["fused"][0], strict=True))
    assert values == pytest.approx(
        {"r1": 100, "r5": 50, "r10": 100, "r100": 100, "sumr": 350, "meanr": 1, "map": (1 + 2 / 7) / 2}
    )


def test_a_gap_pairs_queries_by_their_id():
    first = evaluation(fused=[1] * 20 + [200] * 20)
    ids, ranks = first.query_ids[::-1], {"fused": first.ranks["fused"][::-1]}
    shuffled = Evaluation("b", "test", "held-out", ids, ids, first.ratios, ranks)
    found = gap(first, shuffled, ("fused", "fused"), ("a", "b"), HOW)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert "cannot be told apart" in str(found)


@pytest.mark.parametrize(
    ("fused", "teacher", "answer"),
    [
        ([1] * 50, [200] * 50, "Yes: SumR 400.0 against 0.0, a difference of +400.0"),
        ([200] * 50, [1] * 50, "No: SumR 0.0 against 400.0, a difference of −400.0"),
        ([1, 200] * 25, [200, 1] * 25, "This split cannot tell: SumR 200.0 against 200.0"),
    ],
)
def test_the_verdict_follows_the_interval(fused, teacher, answer):
    assert beat_teacher(evaluation(fused=fused, teacher=teacher), HOW).startswith(answer)


def test_the_verdict_says_how_often_a_right_video_is_among_the_first_ten():
    said = beat_teacher(evaluation(fused=[10] * 3 + [11], teacher=[1] + [99] * 3), HOW)
    assert "For 75\u00a0% of the queries a right video is among the first 10 answers" in said
    assert said.endswith("with the teacher alone, for 25\u00a0%.")


def test_what_helped_speaks_of_the_rows_that_are_there():
    said = what_helped(evaluation(fused=[1] * 9, teacher=[9] * 9, inheritance=[1] * 9), HOW)
    assert "The fused student is above the teacher alone: +200.0 SumR" in said
    assert "The fused student and the inheritance branch alone cannot be told apart here: 0.0 SumR" in said
    assert "exploration" not in said


def test_the_weakest_group_is_named():
    said = where_it_fails(evaluation(ratios=[0.1] * 10 + [0.9] * 10, fused=[50] * 5 + [1] * 15))
    said = said.replace("\u00a0", " ")
    assert "For 25 % of the queries the right video is not the first answer" in said
    assert "0–20 % of its video: SumR 250.0, against 325.0 overall" in said


def test_figures_of_the_table_are_the_ranks_summary():
    section = recall_section(
        evaluation(ratios=[0.1, 0.5, 0.9, np.nan], fused=[1, 2, 6, 11], teacher=[1, 1, 1, 300]), HOW
    )
    table = next(block for block in section.blocks if isinstance(block, Table))
    shown = {row[0]: [cell.text for cell in row[1:]] for row in table.rows}
    assert shown["fused"] == ["25.0", "50.0", "75.0", "100.0", "250.0", "4.0", "5.0", "0.439"]
    assert shown["teacher"] == ["75.0", "75.0", "75.0", "75.0", "300.0", "1.0", "75.8", "0.751"]


def test_an_evaluation_is_read_from_its_table(tmp_path):
    collection = open_collection(str(tmp_path))
    relevant = {"b": ["v2", "v1"], "a": ["v1"]}
    queries = [
        {"query_id": query_id, "text": "", "video_ids": video_ids, "split": "test", "moments": []}
        for query_id, video_ids in relevant.items()
    ]
    collection.query_shards.append(pa.Table.from_pylist(queries, schema=schema.QUERIES))
    kept = [("b", "fused", [1, 3]), ("a", "teacher", [4]), ("a", "fused", [2]), ("b", "teacher", [5, 6])]
    ratios = {"a": None, "b": 0.25}
    rows = [{"query_id": q, "row": row, "ranks": ranks, "moment_ratio": ratios[q]} for q, row, ranks in kept]
    table = pa.Table.from_pylist(rows, schema=schema.QUERY_RANKS)
    store = collection.store.child("runs/r/evaluations")
    store.put("test-held-out.parquet", table_to_bytes(table))
    put_json(store, "test-held-out.json", {"weights": {"inheritance": 1.0}, "moments": {"r1_iou0.5": 12.5}})
    found = read_evaluation(collection, "r", "test", "held-out")
    assert found.query_ids == ["a", "b"]
    assert found.clusters == ["v1", "v2"]
    np.testing.assert_array_equal(found.ratios, [np.nan, 0.25])
    assert {row: [r.tolist() for r in ranks] for row, ranks in found.ranks.items()} == {
        "teacher": [[4], [5, 6]],
        "fused": [[2], [1, 3]],
    }
    assert (found.weights, found.moments) == ({"inheritance": 1.0}, {"r1_iou0.5": 12.5})
    assert read_evaluation(collection, "r", "test", "paper") is None

"""The weights behind each row of an evaluation."""

from prvr_ray.evaluation.evaluate import _weightings


def test_each_row_weighs_the_branches_as_its_name_says():
    rows = _weightings(["inheritance", "exploration"], {"inheritance": 0.7, "exploration": 0.3}, 0.25)
    assert rows == {  # by hand; the last weight is the teacher's
        "teacher": [0, 0, 1],
        "inheritance": [1, 0, 0],
        "exploration": [0, 1, 0],
        "fused": [0.7, 0.3, 0],
        "teacher+student": [0.75 * 0.7, 0.75 * 0.3, 0.25],
    }

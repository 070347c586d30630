"""One comparison of specs: what an older version did not write down yet is no difference."""

import pytest

from prvr_ray.collection import declare_spec, differences
from prvr_ray.storage import open_store, put_json


@pytest.mark.parametrize(
    ("existing", "wanted", "found"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["a is 1 there, 2 here"]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 4}}, ["a.b is 1 there, 3 here", "a.c is 2 there, 4 here"]),
        ({"a": 1}, {"a": 1, "new": 5}, []),
        ({"a": {}}, {"a": {"new": {"b": 5}}}, []),
        ({"a": 1, "gone": 2}, {"a": 1}, ["gone is 2 there, None here"]),
        ({"a": {"b": 1}}, {"a": 1}, ["a is {'b': 1} there, 1 here"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a is [1, 2] there, [1, 3] here"]),
    ],
)
def test_differences_are_named_by_their_path(existing, wanted, found):
    assert differences(existing, wanted) == found


def test_a_key_that_an_older_spec_lacks_means_what_that_version_did():
    older = {"teacher.pooling": "mean"}
    assert differences({"teacher": {}}, {"teacher": {"pooling": "mean"}}, older=older) == []
    assert differences({"teacher": {}}, {"teacher": {"pooling": "max"}}, older=older) == [
        "teacher.pooling is 'mean' there, 'max' here"
    ]
    assert differences({"teacher": {"pooling": "max"}}, {"teacher": {"pooling": "max"}}, older=older) == []


def test_paths_that_may_differ_are_not_compared():
    existing, wanted = {"teacher": {"name": "/old/model", "dim": 4}}, {"teacher": {"name": "/new/model", "dim": 4}}
    assert differences(existing, wanted) == ["teacher.name is '/old/model' there, '/new/model' here"]
    assert differences(existing, wanted, may_differ={"teacher.name"}) == []


def test_a_folder_of_an_older_version_is_appended_to(tmp_path):
    store = open_store(str(tmp_path))
    put_json(store, "spec.json", {"format_version": 1, "dim": 4})
    assert declare_spec(store, {"dim": 4, "new": "x"}) == {"format_version": 1, "dim": 4}
    with pytest.raises(ValueError, match=r"was written with other settings: dim is 4 there, 5 here"):
        declare_spec(store, {"dim": 5, "new": "x"})

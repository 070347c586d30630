"""Partials as bytes, against the safetensors library."""

import numpy as np
import pytest
import safetensors.numpy

from prvr_ray.scores.partial import load_partial, pack_names, save_partial, slice_queries, unpack_names

VALUES = {
    "scores": np.array([[0.5, -np.inf], [0.25, 0.125]], np.float32),
    "videos": np.array([[0, 1], [1, 0]], np.int32),
    "times": np.array([[[1.0, np.nan, 2.0]]]),
    "names": np.frombuffer(b"abc", np.uint8),
    "nothing": np.zeros((0, 3), np.float32),
    "half": np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2],
}


def check(found):
    assert found.keys() == VALUES.keys()
    for name, array in VALUES.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f")


def test_the_library_reads_what_is_saved():
    check(safetensors.numpy.load(save_partial(VALUES)))


def test_what_the_library_saved_is_read():
    """Partials of earlier versions were saved by it."""
    check(load_partial(safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in VALUES.items()})))


def test_arrays_are_aligned_views():
    found = load_partial(save_partial(VALUES))
    assert all(array.flags.aligned and not array.flags.owndata for array in found.values() if array.size)


@pytest.mark.parametrize("data", [b"", b"12345678", (10**6).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"[]"])
def test_damage_is_an_error(data):
    with pytest.raises(ValueError, match="damaged"):
        load_partial(data)


def test_names_are_data():
    names = ["", "a\nb", "ümläut 日本 🎬", '"quoted"']
    assert unpack_names(pack_names(names)) == names


@pytest.mark.parametrize(("num_queries", "k"), [(0, 5), (3, 1), (7, 1 << 21), (2, 1 << 30)])
def test_slices_cover_all_queries_once(num_queries, k):
    covered = [row for part in slice_queries(num_queries, k) for row in range(num_queries)[part]]
    assert covered == list(range(num_queries))
    assert all((part.stop - part.start) * k <= max(1 << 22, k) for part in slice_queries(num_queries, k))

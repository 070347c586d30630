"""Vectors and times as bytes of one column: layout, precision, and what is refused."""

import struct

import numpy as np
import pyarrow as pa
import pytest

from prvr_ray import schema
from prvr_ray.schema import pack_times, pack_vectors, unpack_times, unpack_vectors


def test_vectors_are_little_endian_float16_row_by_row():
    packed = pack_vectors(np.array([[1.0, -2.0], [0.5, 65504.0]]))
    assert packed == struct.pack("<4e", 1.0, -2.0, 0.5, 65504.0)
    assert packed == bytes.fromhex("003c 00c0 0038 ff7b")


def test_times_are_little_endian_float64():
    assert pack_times(np.array([0.5, np.pi])) == struct.pack("<2d", 0.5, np.pi)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.int32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_real_matrix_comes_back_rounded_to_float16(dtype, order):
    x_nD = np.asarray(np.random.default_rng(0).normal(scale=9, size=(7, 5)), order=order).astype(dtype)
    back_nD = unpack_vectors(pack_vectors(x_nD), 5)
    expected = [[struct.unpack("<e", struct.pack("<e", float(value)))[0] for value in row] for row in x_nD]
    assert back_nD.dtype == np.float16
    assert back_nD.tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520.0, -1e9])
def test_what_float16_cannot_hold_is_refused(value):
    x_nD = np.zeros((3, 2))
    x_nD[2, 1] = value
    with pytest.raises(ValueError, match=r"NaN, infinity or values beyond float16's range"):
        pack_vectors(x_nD)


def test_only_matrices_are_packed():
    for shape in ((3,), (2, 3, 4), ()):
        with pytest.raises(ValueError, match=r"expected \(num_rows, dim\)"):
            pack_vectors(np.zeros(shape))


def test_no_rows_are_no_bytes():
    assert pack_vectors(np.zeros((0, 4))) == b""
    assert unpack_vectors(b"", 4).shape == (0, 4)
    assert unpack_times(pack_times(np.zeros(0))).shape == (0,)


def test_bytes_that_are_no_whole_number_of_rows_are_refused():
    with pytest.raises(ValueError, match="cannot reshape"):
        unpack_vectors(bytes(10), 4)
    with pytest.raises(ValueError, match="buffer size"):
        unpack_vectors(bytes(9), 4)


def test_values_are_read_without_a_copy_from_buffers_and_arrow_scalars():
    packed = pa.py_buffer(pack_vectors(np.arange(12.0).reshape(3, 4)))
    assert unpack_vectors(packed, 4).ctypes.data == packed.address
    scalar = pa.array([None, packed.to_pybytes()], pa.large_binary())[1]
    assert unpack_vectors(scalar, 4).tolist() == np.arange(12.0).reshape(3, 4).tolist()


def test_tables_hold_what_the_design_lists():
    names = {
        "VIDEOS": "video_id uri size etag split duration_s",
        "QUERIES": "query_id text video_ids split moments",
        "FEATURE_VIDEOS": "video_id etag segment is_last teacher student error_class error",
        "FEATURE_QUERIES": "query_id teacher student",
        "SCORES": "query_id rank video_id score inheritance_score exploration_score peak_s start_s end_s",
    }
    for table, columns in names.items():
        assert set(columns.split()) <= set(getattr(schema, table).names), table
    assert [field.name for field in schema.QUERIES.field("moments").type.value_type] == ["video_id", "start_s", "end_s"]


def test_vector_columns_are_one_binary_value_a_row():
    for table in (schema.FEATURE_VIDEOS, schema.FEATURE_QUERIES, schema.INDEX):
        for name in ("teacher", "student", "inheritance", "exploration", "timestamps_s", "edges_s"):
            assert name not in table.names or pa.types.is_large_binary(table.field(name).type)

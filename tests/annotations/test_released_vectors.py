"""Frame files and HDF5 files of released features: read back as written, and every kind of damage."""

import ast

import h5py
import numpy as np
import pytest
from support import released_layout

from prvr_ray.annotations import released_vectors
from prvr_ray.annotations.released_vectors import VectorsError, open_frame_file, open_vector_file, read_frame_lists


@pytest.fixture
def frames():
    rng = np.random.default_rng(3)
    return {f"v{n}": rng.normal(size=(n + 1, 5)).astype(np.float32) for n in range(7)}


@pytest.fixture
def folder(tmp_path, frames):
    released_layout.write_frames(tmp_path, frames)
    return tmp_path


def test_every_video_gets_its_own_rows_in_its_order(folder, frames):
    file = open_frame_file(folder)
    assert set(file.row_numbers) == set(frames)
    for video_id, rows in frames.items():
        np.testing.assert_array_equal(file.read(video_id), rows)


def test_frames_of_a_file_far_larger_than_what_is_read_stay_on_disk(folder):
    file = open_frame_file(folder)
    assert isinstance(file.rows_ND, np.memmap)
    assert file.rows_ND.mode == "r"


@pytest.mark.parametrize("chunk", [3, 7, 64, 2**20])
@pytest.mark.parametrize(
    "videos",
    [
        {},
        {"a": []},
        {"a": ["a_0"], "b": ["b_0", "b_1"]},
        {"it's": ['say "hi"', "both ' and \""], "back\\slash": ["new\nline", "é", "☃", "a]", "{b}: ['c'], "]},
    ],
)
def test_frame_lists_are_what_python_would_evaluate(tmp_path, monkeypatch, videos, chunk):
    path = tmp_path / "video2frames.txt"
    path.write_text(f"  {videos!r}\n", encoding="utf-8")
    monkeypatch.setattr(released_vectors, "_CHUNK", chunk)
    assert dict(read_frame_lists(path)) == ast.literal_eval(path.read_text(encoding="utf-8").strip())


def test_frame_lists_of_python_2_and_of_other_printers_are_read(tmp_path):
    path = tmp_path / "video2frames.txt"
    path.write_text("{u'a': [u'a_0',\n  u'a_1', ],\n 'b': ('b_0',),\n}\n")
    assert dict(read_frame_lists(path)) == {"a": ["a_0", "a_1"], "b": ["b_0"]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "{'a': ['a_0', 'a_",
        "{'a': ['a_0'], 'b': [",
        "{'a': ['a_0'],",
        "{'a': ['a_0']} and more",
        "{'a': [1, 2]}",
        "{'a': ['a_0'] 'b': ['b_0']}",
        "{'a': __import__('os').system('touch ran')}",
        "{'a': [open('ran', 'w').name]}",
        "{'a': ['\\x1']}",
        "{" + "[" * 100_000,
    ],
)
def test_anything_else_in_a_frame_list_is_an_error_and_is_not_run(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "video2frames.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"not a dict|damaged or cut off|not a Python string"):
        list(read_frame_lists(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("feature.bin", lambda data: data[:-4], r"has 556 bytes; shape.txt says 28 x 5 float32, 560 bytes"),
        ("feature.bin", lambda data: data + b"\0", r"has 561 bytes"),
        ("shape.txt", lambda data: b"27 5", r"540 bytes"),
        ("shape.txt", lambda data: b"28", r"two positive numbers, frames and dimensions, not '28'"),
        ("shape.txt", lambda data: b"28 -5", r"two positive numbers"),
        ("shape.txt", lambda data: b"", r"two positive numbers"),
        ("id.txt", lambda data: data.rsplit(b" ", 1)[0], r"names 27 frames; shape.txt says 28"),
        ("video2frames.txt", lambda data: data[:-1], r"damaged or cut off after \d+ characters"),
    ],
)
def test_a_damaged_frame_file_is_refused_with_what_is_wrong(folder, name, change, said):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=said) as raised:
        open_frame_file(folder)
    assert str(folder) in str(raised.value)


def test_all_missing_parts_of_a_frame_file_are_named(folder):
    (folder / "id.txt").unlink()
    (folder / "shape.txt").unlink()
    with pytest.raises(ValueError, match=r"has no shape\.txt, id\.txt"):
        open_frame_file(folder)


def test_names_in_latin_1_are_found(tmp_path):
    rows = {"café": np.ones((2, 3), np.float32)}
    released_layout.write_frames(tmp_path, rows)
    np.testing.assert_array_equal(open_frame_file(tmp_path).read("café"), rows["café"])


def test_unusable_frames_are_told_apart(tmp_path):
    rows = {name: np.ones((2, 3), np.float32) for name in ("good", "nan", "large", "renamed")}
    rows["nan"][1, 2] = np.nan
    rows["large"][0, 0] = 1e5  # more than float16 holds
    released_layout.write_frames(tmp_path, rows)
    lists = (tmp_path / "video2frames.txt").read_text()
    (tmp_path / "video2frames.txt").write_text(lists.replace("renamed_1", "other").replace("{", "{'none': [], ", 1))
    file = open_frame_file(tmp_path)
    reasons = {}
    for video_id in file.row_numbers:
        try:
            file.read(video_id)
        except VectorsError as error:
            reasons[video_id] = error.reason
    assert reasons == {"nan": "not_finite", "large": "not_finite", "renamed": "missing_frames", "none": "empty"}


def test_vectors_of_a_key_are_read_as_rows(tmp_path):
    values = {"matrix": np.eye(3, 4), "row": np.arange(4.0), "half": np.ones((2, 4), np.float16)}
    released_layout.write_vectors(tmp_path / "a.hdf5", values)
    with open_vector_file(tmp_path / "a.hdf5") as file:
        assert file.dim == 4
        assert "row" in file
        assert "column" not in file
        for key, value in values.items():
            read_ND = file.read(key)
            assert read_ND.dtype == np.float32
            np.testing.assert_array_equal(read_ND, np.atleast_2d(value))


def test_unusable_vectors_are_told_apart(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(32))
    path = tmp_path / "a.hdf5"
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = np.ones((1, 4))
    with h5py.File(path, "w") as file:
        file["good"] = np.ones((2, 4), np.float32)
        file["wide"] = np.ones((2, 5), np.float32)
        file["deep"] = np.ones((2, 2, 4), np.float32)
        file["scalar"] = 3.0
        file["words"] = np.full((2, 4), b"x")
        file["none"] = np.ones((0, 4), np.float32)
        file["nan"] = np.full((1, 4), np.nan)
        file.create_group("group")
        file["linked"] = h5py.ExternalLink("other.hdf5", "x")
        file.create_dataset("outside", (2, 4), "f4", external=[(str(tmp_path / "secret.bin"), 0, 32)])
        file.create_dataset("huge", (2**40, 4), "f4", chunks=(1, 4))
        file.create_dataset("damaged", data=np.ones((200, 4)), chunks=(200, 4), compression="gzip")
        damage = file["damaged"].id.get_chunk_info(0).byte_offset
    with path.open("r+b") as raw:
        raw.seek(damage)
        raw.write(b"\xff" * 8)
    reasons = {}
    with open_vector_file(path) as file:
        keys = ["absent", *file.file]
        for key in keys:
            try:
                file.read(key)
            except VectorsError as error:
                reasons[key] = error.reason
    assert reasons == {
        "absent": "missing",
        "wide": "wrong_shape",
        "deep": "wrong_shape",
        "scalar": "wrong_shape",
        "words": "wrong_shape",
        "group": "wrong_shape",
        "none": "empty",
        "nan": "not_finite",
        "linked": "not_plain",
        "outside": "not_plain",
        "huge": "not_plain",
        "damaged": "damaged",
    }


def test_no_key_leads_into_another_file(tmp_path):
    with h5py.File(tmp_path / "private.hdf5", "w") as file:
        file["x"] = np.ones((2, 4), np.float32)
    layout = h5py.VirtualLayout((2, 4), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "private.hdf5"), "x", (2, 4))
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["good"] = file["own/good"] = np.ones((2, 4), np.float32)
        file["own/other"] = h5py.ExternalLink("private.hdf5", "/")
        file["other"] = h5py.ExternalLink("private.hdf5", "/")
        file["lost"] = h5py.ExternalLink("absent.hdf5", "/")
        file["alias"] = h5py.SoftLink("/other")
        file.create_virtual_dataset("virtual", layout)
    reasons = {}
    with open_vector_file(tmp_path / "a.hdf5") as file:
        assert "/own/good" in file
        assert "good/below" not in file
        assert file.read("/own/good").shape == (2, 4)
        for key in ["other/x", "own/other/x", "lost", "lost/x", "alias/x", "virtual", "", "/", "own/x", "good/below"]:
            with pytest.raises(VectorsError) as error:
                file.read(key)
            reasons[key] = error.value.reason
    assert reasons == {
        **dict.fromkeys(["other/x", "own/other/x", "lost", "lost/x", "alias/x", "virtual"], "not_plain"),
        **dict.fromkeys(["", "/", "own/x", "good/below"], "missing"),
    }


@pytest.mark.parametrize(
    "change", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"not HDF5" * 99]
)
def test_a_damaged_hdf5_file_is_refused_by_name(tmp_path, change):
    path = tmp_path / "a.hdf5"
    released_layout.write_vectors(path, {"a": np.ones((2, 4))})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.hdf5 cannot be read as HDF5"), open_vector_file(path):
        pass


def test_an_hdf5_file_without_vectors_is_refused_by_name(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_group("group")
    with pytest.raises(ValueError, match=r"a\.hdf5 holds no vectors"), open_vector_file(tmp_path / "a.hdf5"):
        pass

"""An encoder is its content: a collection that is copied or moved finds it, and others are refused."""

import os
import shutil

import pytest
from support.small_clip import write_small_clip

from prvr_ray.encoders import describe_encoder, find_encoder, load_encoder, make_portable


def spec_of(name):
    return vars(describe_encoder(name))


def test_files_below_the_root_are_named_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = "root/teacher/model.json:root/teacher/weights.safetensors"
    assert make_portable(inside, str(tmp_path / "root")) == "teacher/model.json:teacher/weights.safetensors"
    assert make_portable("ViT-B-32:root/w.pt", "root") == "ViT-B-32:w.pt"
    assert make_portable("ViT-B-32:./w.pt", "root") == f"ViT-B-32:{tmp_path}/w.pt"
    assert make_portable("ViT-B-32:laion2b_s34b_b79k", "root") == "ViT-B-32:laion2b_s34b_b79k"
    assert make_portable("s3://b/r/m.json:s3://b/r/w.pt", "s3://b/r") == "m.json:w.pt"


@pytest.mark.parametrize("is_old", [False, True])
def test_a_root_that_moves_takes_its_encoder_along(tmp_path, monkeypatch, is_old):
    """is_old: a spec of the version that recorded absolute paths."""
    old, new = tmp_path / "old", tmp_path / "else/new"
    name, _ = write_small_clip(old / "teacher")
    spec = spec_of(name) | {"name": name if is_old else make_portable(name, str(old))}
    shutil.copytree(old, new)
    shutil.rmtree(old)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert find_encoder(spec, str(new)) == f"{new}/teacher/model.json:{new}/teacher/weights.safetensors"
    assert find_encoder(spec, os.path.relpath(new)) == f"{new}/teacher/model.json:{new}/teacher/weights.safetensors"


def test_an_encoder_that_lies_elsewhere_now_is_named_by_the_user(tmp_path):
    name, _ = write_small_clip(tmp_path / "before")
    spec = spec_of(name)
    (tmp_path / "before").rename(tmp_path / "after")
    with pytest.raises(ValueError, match=r"there is no file .*name them: --encoder"):
        find_encoder(spec, str(tmp_path / "root"))
    moved = name.replace("before", "after")
    assert find_encoder(spec, str(tmp_path / "root"), moved) == moved
    other, _ = write_small_clip(tmp_path / "other", seed=9)
    with pytest.raises(ValueError, match=r"has weights \w{12}, the features were made with \w{12}"):
        find_encoder(spec, str(tmp_path / "root"), other)


def test_weights_in_an_object_store_are_loaded(s3_root, tmp_path, monkeypatch):
    from prvr_ray.storage import open_store

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    name, _ = write_small_clip(tmp_path / "clip")
    store = open_store(s3_root)
    for file in ("model.json", "weights.safetensors"):
        store.put(f"teacher/{file}", (tmp_path / "clip" / file).read_bytes())
    remote = f"{s3_root}/teacher/model.json:{s3_root}/teacher/weights.safetensors"
    assert load_encoder(remote, device="cpu").spec.weights_sha256 == describe_encoder(name).weights_sha256
    spec = spec_of(remote) | {"name": make_portable(remote, s3_root)}
    assert spec["name"] == "teacher/model.json:teacher/weights.safetensors"
    assert find_encoder(spec, s3_root) == remote

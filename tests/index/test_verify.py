"""`prvr verify` on indexes whose shards were damaged by hand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.served import add_index, add_run, add_videos

from prvr_ray.cli.main import main
from prvr_ray.collection import existing_collection
from prvr_ray.config import IndexSettings
from prvr_ray.index.index import IndexFolder
from prvr_ray.index.verify import _count_bad_rows, verify
from prvr_ray.storage import LocalStore


@pytest.fixture
def root(tmp_path):
    """An index of six shards of two windows each."""
    add_videos(tmp_path, "abcdefghijkl", num_frames=(3, 8))
    add_run(tmp_path)
    add_index(tmp_path, IndexSettings(), rows_per_shard=2)
    return tmp_path


def shard(root, number):
    return sorted((root / "index/i").glob("shard-*.parquet"))[number]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def overwrite_the_footer(path):
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))


def overwrite_vectors(path):
    """256 bytes in the middle of the first vector of a branch, which no reader of Parquet notices."""
    vector = pq.read_table(path)["exploration"][1].as_py()
    data = path.read_bytes()
    start = data.index(vector)
    path.write_bytes(data[:start] + b"\x66" * len(vector) + data[start + len(vector) :])


def test_a_whole_index_is_found_whole(root):
    found = verify(str(root), "i")
    assert found == {
        "shards": 6,
        "windows": 12,
        "bytes": sum(path.stat().st_size for path in (root / "index/i").glob("shard-*")),
        "shards_in_no_manifest": 0,
        "exit_code": 0,
    }


@pytest.mark.parametrize(
    ("damage", "reason", "is_seen_in_a_listing"),
    [
        (lambda path: path.unlink(), "is missing", True),
        (cut_short, "bytes, not the", True),
        (overwrite_the_footer, "cannot be read", False),
        (overwrite_vectors, "vectors of exploration have not length 1", False),
    ],
)
def test_every_bad_shard_is_named_with_its_fault(root, damage, reason, is_seen_in_a_listing):
    damaged = [shard(root, 1), shard(root, 4)]
    for path in damaged:
        damage(path)
    found = verify(str(root), "i")
    assert found["exit_code"] == 1
    assert [path.name in line and reason in line for path, line in zip(damaged, found["bad"], strict=True)] == [
        True
    ] * 2
    assert len(verify(str(root), "i", quick=True).get("bad", [])) == 2 * is_seen_in_a_listing


def test_quick_opens_the_manifest_alone(root, monkeypatch):
    read = []
    get = LocalStore.get
    monkeypatch.setattr(LocalStore, "open", lambda store, key: read.append(key))
    monkeypatch.setattr(LocalStore, "get", lambda store, key: read.append(key) or get(store, key))
    assert verify(str(root), "i", quick=True)["shards"] == 6
    assert read == ["spec.json", "manifest-00000000.json"]


def test_an_index_is_whole_again_after_what_the_warning_says(root):
    overwrite_the_footer(shard(root, 2))
    assert "run the same `prvr index` again" in verify(str(root), "i")["warning"]
    shard(root, 2).unlink()
    add_index(root, IndexSettings(), rows_per_shard=2, prefix="shard-again-")
    found = verify(str(root), "i")
    assert (found["windows"], found["exit_code"]) == (12, 0)


def test_shards_of_a_killed_job_are_counted_and_not_judged(root):
    (root / "index/i/shard-zz.parquet").write_bytes(b"half")
    found = verify(str(root), "i")
    assert (found["shards_in_no_manifest"], found["exit_code"]) == (1, 0)


def test_frames_of_zeros_are_no_damage(root):
    shards = IndexFolder(existing_collection(str(root)), "i").shards
    rows = pq.read_table(shard(root, 0))
    zeros = pa.array([bytes(len(value.as_py())) for value in rows["inheritance"]], pa.large_binary())
    place = rows.schema.get_field_index("inheritance")
    shards.append(rows.set_column(place, rows.schema.field(place), zeros), shard(root, 0).name)
    assert verify(str(root), "i")["exit_code"] == 0


def test_an_index_without_a_manifest_is_verified_too(root):
    (root / "index/i/manifest-00000000.json").unlink()
    assert verify(str(root), "i")["exit_code"] == 0
    cut_short(shard(root, 3))
    assert shard(root, 3).name in verify(str(root), "i")["bad"][0]


def test_rows_are_counted(root):
    manifest = root / "index/i/manifest-00000000.json"
    size = shard(root, 5).stat().st_size
    manifest.write_text(
        manifest.read_text().replace(f'"{shard(root, 5).name}":[2,{size}]', f'"{shard(root, 5).name}":[3,{size}]')
    )
    [line] = verify(str(root), "i")["bad"]
    assert "has 2 rows, not the 3 that its manifest states" in line


def test_the_command_exits_with_1_and_names_the_shard(root, capsys):
    cut_short(shard(root, 0))
    assert main(["verify", "--root", str(root), "--index", "i"]) == 1
    assert shard(root, 0).name in capsys.readouterr().out.replace("\n", "")
    assert main(["verify", "--root", str(root), "--index", "nosuch"]) == 2
    assert "index 'nosuch'" in capsys.readouterr().err


def test_a_length_tells_damage_from_rounding():
    rng = np.random.default_rng(0)
    rows_ND = rng.standard_normal((20_000, 16))
    rows_ND = (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float16)
    assert _count_bad_rows(rows_ND) == 0
    rows_ND[[3, 16_383, 16_384]] = [[np.nan] * 16, [60_000.0] * 16, [0.3] * 16]
    assert _count_bad_rows(rows_ND) == 3

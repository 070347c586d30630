"""A shard that cannot be put is told as a value, and raised where the run is driven."""

import errno
import os

import pyarrow as pa
import pytest
from support import collection_rows as make

from prvr_ray import schema
from prvr_ray.collection import ShardFolder
from prvr_ray.collection.shard_writer import PutShard, raise_put_errors
from prvr_ray.storage import LocalStore

ROWS = pa.Table.from_pylist([make.segment("a"), make.segment("b")], schema.FEATURE_VIDEOS)


class FullDisk(LocalStore):
    def put(self, key, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{self.uri}/{key}")


def test_what_is_put_is_acknowledged_row_by_row_and_again_under_the_same_name(tmp_path):
    folder = ShardFolder(LocalStore(str(tmp_path)), schema.FEATURE_VIDEOS)
    acknowledged = PutShard(folder, "run")(ROWS)
    raise_put_errors(acknowledged)
    assert acknowledged["video_id"].to_pylist() == ["a", "b"]
    PutShard(folder, "run")(ROWS)
    assert len(folder.live()) == 1
    assert folder.scan(["video_id"])["video_id"].to_pylist() == ["a", "b"]


def test_a_full_disk_is_raised_by_the_driver_in_one_line_that_names_the_shard(tmp_path):
    acknowledged = PutShard(ShardFolder(FullDisk(str(tmp_path)), schema.FEATURE_VIDEOS), "run")(ROWS)
    assert acknowledged["video_id"].to_pylist() == ["a", "b"]
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/run-\w+\.parquet'$"):
        raise_put_errors(acknowledged)


def test_a_folder_that_only_the_driver_has_is_refused_before_anything_is_put(tmp_path):
    elsewhere = LocalStore(str(tmp_path / "root/features/default/videos"))  # on another machine its folder stands
    put = PutShard(ShardFolder(elsewhere, schema.FEATURE_VIDEOS), "run")
    for _ in range(2):
        with pytest.raises(OSError, match=r"features/default/videos: no such folder on .*storage that all share"):
            raise_put_errors(put(ROWS))
    assert not (tmp_path / "root").exists()

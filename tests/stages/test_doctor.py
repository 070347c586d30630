"""`prvr doctor`: what is well, and each thing that can be wrong."""

import collections
import json
import os
import shutil
import subprocess

import pytest
from support.clusters import BIN

from prvr_ray.stages import doctor as module
from prvr_ray.stages.doctor import doctor

Usage = collections.namedtuple("Usage", "total used free")


def lines(report: dict) -> dict[str, tuple[bool, str]]:
    """The checks by the last words of their names: the nodes' addresses are left out."""
    return {check["name"].split(maxsplit=1)[-1]: (check["ok"], check["detail"]) for check in report["checks"]}


def test_a_healthy_machine_is_ok_in_every_line(local_ray, tmp_path):
    report = doctor(None, str(tmp_path))
    assert report["exit_code"] == 0
    assert all(check["ok"] for check in report["checks"])
    assert {"from here", "ray", "storage", "gpus", "disk", "shared memory", "clock"} <= set(lines(report))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_s3_is_tried_from_here_and_from_the_nodes(s3_root):
    command = [BIN / "prvr", "doctor", "--root", s3_root, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout
    report = json.loads(ended.stdout.splitlines()[-1])
    assert sum(check["detail"].startswith(f"{s3_root}: write") for check in report["checks"]) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(local_ray, tmp_path):
    tmp_path.chmod(0o500)
    assert lines(doctor(None, str(tmp_path)))["storage"][0] is False


def test_a_bucket_that_does_not_exist_is_named(local_ray, s3_root):
    report = doctor(None, "s3://no-such-bucket-here/root")
    ok, detail = lines(report)["storage"]
    assert not ok
    assert "no-such-bucket-here" in detail
    assert report["exit_code"] == 1


def test_missing_weights_are_named(local_ray, tmp_path):
    ok, detail = lines(doctor(None, str(tmp_path), "ViT-B-32:/no/weights.pt"))["encoder"]
    assert not ok
    assert "/no/weights.pt" in detail


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1:9", "Connection refused"), ("http://127.0.0.1:9", "this is a dashboard; `prvr submit")],
)
def test_an_address_where_no_cluster_is_fails_soon(tmp_path, address, reason):
    """In a process of its own, for this one may have a Ray already."""
    command = [BIN / "prvr", "doctor", "--root", tmp_path, "--address", address, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    ok, detail = lines(json.loads(ended.stdout.splitlines()[-1]))["ray"]
    assert not ok
    assert reason in detail


def test_conditional_puts_that_overwrite_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "prvr_ray.storage.LocalStore.put_if_absent", lambda store, key, data: store.put(key, data) is None
    )
    check = module._storage("storage", str(tmp_path))
    assert not check.ok
    assert "conditional put" in check.detail


def test_a_disk_of_one_node_alone_is_found(tmp_path):
    assert module._storage("storage", str(tmp_path)).ok
    check = module._storage("storage", str(tmp_path), mark="doctor/mark-of-the-driver")
    assert not check.ok
    assert "storage that all nodes share" in check.detail


def test_small_shared_memory_and_full_disks_say_what_to_do(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 2**20, 63 * 2**20, 2**20))
    check = module._shared_memory(2**30)
    assert not check.ok
    assert f"--shm-size {2**30}" in check.detail


def test_gpus_that_ray_promises_and_torch_does_not_see_are_found():
    check = module._gpus(64)
    assert not check.ok
    assert "Ray counts 64, torch sees" in check.detail


@pytest.mark.parametrize("compiler", ["/usr/bin/gcc", None])
def test_a_gpu_node_without_a_c_compiler_is_found(compiler, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: compiler)
    check = module._compiler()
    assert check.ok == (compiler is not None)
    assert check.ok or "install gcc" in check.detail

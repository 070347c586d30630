"""Workers that were given no GPU stay off those that torch sees on their node."""

import re
from pathlib import Path

import pytest
import torch
from support.small_clip import write_small_clip

import prvr_ray.stages
from prvr_ray.config import IngestSettings
from prvr_ray.devices import choose_device, count_cpus, describe_cuda
from prvr_ray.encoders import describe_encoder
from prvr_ray.features import encode_worker
from prvr_ray.stages.ingest_pipeline import plan_pipeline


@pytest.mark.parametrize(
    ("num_gpus", "has_gpu", "expected"),
    [(0.0, True, "cpu"), (0.25, True, "cuda"), (1.0, True, "cuda"), (0.0, False, "cpu")],
)
def test_a_worker_computes_on_a_gpu_only_if_it_was_given_one(num_gpus, has_gpu, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert choose_device(num_gpus) == expected


def test_a_worker_whose_gpu_cannot_be_used_says_so_instead_of_computing_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("PRVR_FAKE_GPUS", raising=False)
    with pytest.raises(ValueError, match=r"reserved 0\.5 GPU, but torch cannot use CUDA there: torch .*prvr doctor"):
        choose_device(0.5)


@pytest.mark.parametrize(
    ("built_for", "driver", "num_files", "visible", "advice"),
    [
        (None, "470.82.01", 1, None, r"built for the CPU only.*\(install a torch built for CUDA\)"),
        ("13.0", "", 0, None, r"driver none found.*\(install NVIDIA's driver on the node\)"),
        ("13.0", "580.65.06", 0, None, r"driver 580\.65\.06, 0 device file.*--gpus all"),
        ("13.0", "580.65.06", 1, "", r"CUDA_VISIBLE_DEVICES='' \(do not hide the GPUs"),
        ("13.0", "470.82.01", 2, None, r"driver 470\.82\.01, 2 device file.*older than CUDA 13\.0 needs"),
    ],
)
def test_unusable_cuda_is_described_with_its_remedy(
    built_for, driver, num_files, visible, advice, monkeypatch, tmp_path
):
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if driver:
        line = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Wed Oct 27 21:21:55 UTC 2021"
        (tmp_path / "version").write_text(line)
    for number in range(num_files):
        (tmp_path / f"nvidia{number}").touch()
    assert re.search(advice, describe_cuda(tmp_path / "version", tmp_path))


@pytest.mark.parametrize(("settings", "expected"), [({}, "cpu"), ({"encoder_gpus": 0.5}, "cuda")])
def test_encoders_of_ingest_go_where_their_settings_say(settings, expected, monkeypatch, local_ray, tmp_path):
    name, _ = write_small_clip(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(encode_worker, "load_encoder", lambda name, device, micro_batch: device)
    encode = plan_pipeline(IngestSettings(encoder=name, **settings), [describe_encoder(name)]).encode
    num_threads = torch.get_num_threads()
    assert encode.load() == [expected]
    torch.set_num_threads(num_threads)


def test_no_stage_takes_the_gpu_that_torch_sees():
    """Beside `choose_device`, a stage may only count GPUs; `load_encoder` without a device would take one."""
    for path in Path(prvr_ray.stages.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert path.name == "devices.py" or "cuda.is_available" not in text, path
        assert not re.search(r"load_encoder\([^,)]*(\)|, \w+=)", text), path


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {}, 64),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "150000 100000"}, 1),
        ("0::/", {"cpu.max": "50000 100000"}, 1),  # Ray counts none
        ("0::/system.slice/job.service", {"system.slice/job.service/cpu.max": "400000 100000"}, 4),  # CPUQuota=400%
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("4:cpu,io:/a\n0::/", {"cpu,io/a/cpu.cfs_quota_us": "250000", "cpu,io/a/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
    ],
)  # fmt: skip
def test_a_quota_on_any_cgroup_of_the_process_limits_its_cpus(own, files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    for name, content in {"own": own, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert count_cpus(tmp_path, tmp_path / "own") == expected


def test_a_pinned_process_has_the_cpus_that_it_is_pinned_to(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    assert count_cpus(tmp_path, tmp_path / "own") == 1

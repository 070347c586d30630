"""Chooses a worker's device, says why CUDA cannot be used, and counts the CPUs that this process may use."""

import os
import platform
import re
from pathlib import Path

import torch

_FAKE_GPUS = "PRVR_FAKE_GPUS"  # set by tests whose clusters count GPUs that do not exist


def choose_device(num_gpus: float) -> str:
    """Choose the device of a worker that reserved this many GPUs: the CPU if it reserved none.

    Ray does not hide a node's GPUs from workers that reserved none (`RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO`). Using one
    would take GPU memory from the workers that reserved it.

    Raises:
        ValueError: a GPU was reserved, but torch cannot use it. Computing on the CPU instead would pay for an idle GPU.
    """
    if num_gpus <= 0:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get(_FAKE_GPUS) == "1":
        return "cpu"
    raise ValueError(
        f"a worker on {platform.node()} reserved {num_gpus:g} GPU, but torch cannot use CUDA there: {describe_cuda()}; "
        "`prvr doctor` checks every node, and the *_gpus settings at 0 compute on the CPU"
    )


def describe_cuda(driver: Path = Path("/proc/driver/nvidia/version"), devices: Path = Path("/dev")) -> str:
    """Say what a node has for CUDA, and what to do where something is missing.

    Args:
        driver: the file in which NVIDIA's kernel driver tells its version.
        devices: folder with the GPUs' device files, nvidia0 and so on.
    """
    version = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", " ".join(_read_words(driver)))
    num_files = len(list(devices.glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    built_for = torch.version.cuda
    found = [
        f"torch {torch.__version__} is built for {f'CUDA {built_for}' if built_for else 'the CPU only'}",
        f"driver {version[1] if version else 'none found'}",
        f"{num_files} device file(s)",
        f"CUDA_VISIBLE_DEVICES={'unset' if visible is None else repr(visible)}",
    ]
    return f"{', '.join(found)} ({_advise(built_for, version is not None, num_files, visible)})"


def _advise(built_for: str | None, has_driver: bool, num_files: int, visible: str | None) -> str:
    if not built_for:
        return "install a torch built for CUDA"
    if not has_driver:
        return "install NVIDIA's driver on the node"
    if not num_files:
        return "start the container with --gpus all"
    if visible in ("", "-1", "NoDevFiles"):
        return "do not hide the GPUs by CUDA_VISIBLE_DEVICES"
    return f"the driver may be older than CUDA {built_for} needs: update it"


def count_cpus(cgroups: Path = Path("/sys/fs/cgroup"), own_cgroup: Path = Path("/proc/self/cgroup")) -> int:
    """Count the CPUs that this process may use, at least 1.

    Ray reads a CPU quota only at the root of the cgroup tree and ignores quotas below one CPU; otherwise it counts all
    CPUs of the machine. But systemd (`CPUQuota=`) and batch systems set quotas on the process's own cgroup, or pin it.

    Args:
        cgroups: where the cgroup tree is mounted, version 1 or 2.
        own_cgroup: the file that lists the process's cgroups.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([float(affinity), *_cgroup_quotas(cgroups, own_cgroup)])))


def _cgroup_quotas(cgroups: Path, own_cgroup: Path) -> list[float]:
    """Return the CPU quotas of the process's cgroup and all cgroups above it: each limits the process."""
    quotas = []
    for folder in _cgroup_folders(cgroups, own_cgroup):
        words = _read_words(folder / "cpu.max") or (
            *_read_words(folder / "cpu.cfs_quota_us"),
            *_read_words(folder / "cpu.cfs_period_us"),
        )
        # "max" in version 2 and -1 in version 1 mean no quota.
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            quota, period = words
            quotas.append(int(quota) / int(period))
    return quotas


def _cgroup_folders(cgroups: Path, own_cgroup: Path) -> list[Path]:
    folders = []
    for line in _read_words(own_cgroup):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in (cgroups, cgroups / "cpu", cgroups / controllers):
            own = mount / path.strip("/")
            folders += [own, *(parent for parent in own.parents if parent.is_relative_to(mount))]
    return list(dict.fromkeys(folders))


def _read_words(file: Path) -> tuple[str, ...]:
    try:
        return tuple(file.read_text().split())
    except (OSError, ValueError):
        return ()

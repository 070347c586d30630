"""Chooses a worker's device, and counts the CPUs that this process may use."""

import os
from pathlib import Path

import torch


def choose_device(num_gpus: float) -> str:
    """Choose the device of a worker that reserved this many GPUs: the CPU if it reserved none.

    Ray does not hide a node's GPUs from workers that reserved none (`RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO`). Using one
    would take GPU memory from the workers that reserved it.
    """
    return "cuda" if num_gpus > 0 and torch.cuda.is_available() else "cpu"


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

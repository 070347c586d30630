"""What a decoder may leave behind in this process. Other tests' Ray may live here too: its children do not count."""

import contextlib
import os

import psutil


def decoding_children() -> list[psutil.Process]:
    """Child processes that run prvr_ray.corpus.decoder."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "prvr_ray.corpus.decoder" in child.cmdline():
                found.append(child)
    return found


def open_pipes_and_files() -> int:
    """How many pipes and files are open; sockets and event descriptors, which Ray opens when it likes, are left out."""
    targets = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(target.startswith("pipe:") or (target.startswith("/") and "ray" not in target) for target in targets)

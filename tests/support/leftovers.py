"""What a decoder may leave behind in this process. Other tests' Ray may live here too: its children do not count."""

import contextlib
import os

import psutil


def decoding_children() -> list[psutil.Process]:
    """Child processes that run prvr_ray.video.decoder_process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "prvr_ray.video.decoder_process" in child.cmdline():
                found.append(child)
    return found


def open_pipes_and_files() -> int:
    """How many pipes and files are open; sockets and event descriptors, which Ray opens when it likes, are left out."""
    targets = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(target.startswith("pipe:") or (target.startswith("/") and "ray" not in target) for target in targets)


def end_decoding_children() -> None:
    """End the decoders that earlier tests of this process still hold, so that only a test's own are found."""
    for child in decoding_children():
        child.kill()
        child.wait(timeout=10)

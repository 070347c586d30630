"""Storage that may be read but not written. Tests may run as root, whom no permission of a folder stops."""

import errno
import os

import pytest

from prvr_ray.storage import LocalStore


def refuse_puts(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every local folder answers a put as a file system that is mounted read-only does."""

    def refuse(store: LocalStore, key: str, data: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{store.uri}/{key}")

    monkeypatch.setattr(LocalStore, "put", refuse)
    monkeypatch.setattr(LocalStore, "put_if_absent", refuse)

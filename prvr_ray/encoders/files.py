"""Gives local paths to encoder files; files in an object store are downloaded once."""

import hashlib
import os
import tempfile
from pathlib import Path, PurePosixPath

from prvr_ray.storage import open_store


def fetch_local_copy(uri: str) -> Path:
    """Return a local path to a file; an object in a store is downloaded once per version.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the store cannot be reached or denies access.
    """
    if "://" not in uri:
        return Path(uri)
    folder, _, key = uri.rpartition("/")
    store = open_store(folder)
    version = hashlib.sha256(f"{uri} {store.stat(key).etag}".encode()).hexdigest()[:24]
    kept = _cache_folder() / f"{version}{PurePosixPath(key).suffix[:16]}"
    if not kept.is_file():
        with store.local_file(key) as path:
            half = kept.with_name(f"{kept.name}.{os.getpid()}")
            half.write_bytes(path.read_bytes())
            os.replace(half, kept)  # atomic: another worker of this node may download it too
    return kept


def _cache_folder() -> Path:
    """Return a private folder of this user: whoever can write to it decides which weights are loaded."""
    folder = Path(tempfile.gettempdir()) / f"prvr-ray-encoders-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder

"""A folder on a local or mounted disk."""

import contextlib
import os
import platform
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from prvr_ray.storage.store import Store, StoredObject

_UNFINISHED = ".unfinished-"  # prefix of the name of a file that is still being written


@dataclass(frozen=True)
class LocalStore:
    """A folder on a local or mounted disk."""

    uri: str

    def child(self, path: str) -> "LocalStore":
        return LocalStore(self._path(path))

    def put(self, key: str, data: bytes | pa.Buffer) -> None:
        with self._whole_file(key, data) as written:
            os.replace(written, self._path(key))
        _sync_folder(os.path.dirname(self._path(key)))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._whole_file(key, data) as written:
            try:
                os.link(written, self._path(key))  # unlike O_EXCL, never shows half a file
            except FileExistsError:
                return False
        _sync_folder(os.path.dirname(self._path(key)))
        return True

    def get(self, key: str) -> bytes:
        return Path(self._path(key)).read_bytes()

    def open(self, key: str) -> pa.NativeFile:
        return pa.memory_map(self._path(key))

    def list(self, prefix: str = "") -> list[StoredObject]:
        found = []
        for folder, names in _walk(self._path(os.path.dirname(prefix))):
            for name in names:
                path = os.path.join(folder, name)
                key = os.path.relpath(path, self.uri).replace(os.sep, "/")
                if key.startswith(prefix) and not name.startswith(_UNFINISHED):
                    with contextlib.suppress(FileNotFoundError):  # deleted, or a dangling link
                        found.append(self.stat(key))
        return sorted(found, key=lambda item: item.key)

    def stat(self, key: str) -> StoredObject:
        stat = os.stat(self._path(key))
        return StoredObject(key, stat.st_size, f"{stat.st_mtime_ns}-{stat.st_size}")

    def exists(self, key: str) -> bool:
        return os.path.isfile(self._path(key))

    def delete(self, key: str) -> None:
        Path(self._path(key)).unlink(missing_ok=True)

    @contextlib.contextmanager
    def local_file(self, key: str) -> Iterator[Path]:
        yield Path(self._path(key))

    def _path(self, key: str) -> str:
        return os.path.join(self.uri, key) if key else self.uri

    @contextlib.contextmanager
    def _whole_file(self, key: str, data: bytes | pa.Buffer) -> Iterator[str]:
        folder = os.path.dirname(self._path(key))
        os.makedirs(folder, exist_ok=True)
        unfinished = os.path.join(folder, _UNFINISHED + uuid.uuid4().hex)
        try:
            self._write(unfinished, data, key)
            yield unfinished
        finally:
            with contextlib.suppress(OSError):  # the write's own error says more; `prvr gc` deletes what is left
                Path(unfinished).unlink(missing_ok=True)

    def _write(self, path: str, data: bytes | pa.Buffer, key: str) -> None:
        try:
            with open(path, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # "no space left" does not name the file
            raise OSError(error.errno, error.strerror, self._path(key)) from None


def delete_unfinished(store: Store, before: float) -> int:
    """Delete the files that killed writers left below a local folder; other stores keep nothing of an unfinished put.

    Args:
        before: seconds since the epoch; younger files may belong to an active writer.

    Returns:
        How many files were deleted.
    """
    if not isinstance(store, LocalStore):
        return 0
    count = 0
    for path in Path(store.uri).rglob(f"{_UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):  # its writer has just finished
            if path.stat().st_mtime < before:
                path.unlink()
                count += 1
    return count


def find_sharing_problem(store: Store) -> str | None:
    """Return an error message if this local folder is not shared between nodes.

    The driver has already put something beside the folder, so its parent exists on every node that shares the storage.
    """
    if not isinstance(store, LocalStore) or os.path.isdir(os.path.dirname(store.uri)):
        return None
    return f"{store.uri}: no such folder on {platform.node()}; on several nodes ROOT must be storage that all share"


def _walk(top: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder below `top`, linked folders included, with the names of its files.

    Raises:
        OSError: a folder cannot be read. A folder deleted in the meantime is not an error.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    ways: dict[str, tuple[str, ...]] = {
        top: (os.path.realpath(top),)
    }  # folder -> the real path of each folder above it
    for folder, folders, names in os.walk(top, onerror=fail, followlinks=True):
        yield folder, names
        way = ways.pop(folder)
        for name in list(folders):
            path = os.path.join(folder, name)
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(way[-1], name)
            if real in way:  # a link to a folder above: a loop
                folders.remove(name)
            ways[path] = (*way, real)


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

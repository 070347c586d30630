"""gs:// and abfs://, through pyarrow."""

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from prvr_ray.storage.store import StoredObject, put_lowest_claim, temporary_file


@dataclass(frozen=True)
class ArrowStore:
    """gs:// or abfs:// through pyarrow. In both stores an upload appears only once it is closed, complete."""

    uri: str
    anonymous: bool = False  # only gs:// honours it

    def child(self, path: str) -> "ArrowStore":
        return ArrowStore(f"{self.uri}/{path}" if path else self.uri, self.anonymous)

    def put(self, key: str, data: bytes | pa.Buffer) -> None:
        with self._filesystem.open_output_stream(self._path(key)) as stream:
            stream.write(data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return put_lowest_claim(self, key, data)

    def get(self, key: str) -> bytes:
        with self._filesystem.open_input_stream(self._path(key)) as stream:
            return stream.read()

    def open(self, key: str) -> pa.NativeFile:
        return self._filesystem.open_input_file(self._path(key))

    def list(self, prefix: str = "") -> list[StoredObject]:
        base = self._path("")
        folder = self._path(prefix.rpartition("/")[0])  # all keys with the prefix lie in this folder
        selector = pa.fs.FileSelector(folder, recursive=True, allow_not_found=True)
        infos = (info for info in self._filesystem.get_file_info(selector) if info.is_file)
        found = (
            StoredObject(info.path[len(base) :].lstrip("/"), info.size, f"{info.mtime_ns}-{info.size}")
            for info in infos
        )
        return sorted((item for item in found if item.key.startswith(prefix)), key=lambda item: item.key)

    def stat(self, key: str) -> StoredObject:
        [info] = self._filesystem.get_file_info([self._path(key)])
        if not info.is_file:
            raise FileNotFoundError(f"{self.uri}/{key} does not exist")
        return StoredObject(key, info.size, f"{info.mtime_ns}-{info.size}")

    def exists(self, key: str) -> bool:
        [info] = self._filesystem.get_file_info([self._path(key)])
        return bool(info.is_file)

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(key))

    @contextlib.contextmanager
    def local_file(self, key: str) -> Iterator[Path]:
        with temporary_file(key) as path:
            with self._filesystem.open_input_stream(self._path(key)) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            yield path

    @property
    def _filesystem(self) -> pa.fs.FileSystem:
        return _arrow_filesystem(self.uri.partition("://")[0], self.anonymous)

    def _path(self, key: str) -> str:
        base = self.uri.partition("://")[2]
        return f"{base}/{key}" if key else base


@functools.cache
def _arrow_filesystem(scheme: str, anonymous: bool = False) -> pa.fs.FileSystem:
    if scheme == "gs":
        return pa.fs.GcsFileSystem(anonymous=anonymous)
    account = os.environ.get("AZURE_STORAGE_ACCOUNT")
    if not account:
        raise ValueError("abfs:// needs AZURE_STORAGE_ACCOUNT in the environment")
    return pa.fs.AzureFileSystem(account_name=account)

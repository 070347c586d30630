"""The only module that opens a URI: a local folder, s3://, gs:// or abfs://.

An object is put whole with one request or not at all; nothing is rewritten in place except by `put` on the same key
with the same meaning. This module knows objects and Parquet bytes; what the tables mean is `prvr_ray.collection`'s.
"""

import contextlib
import functools
import json
import os
import platform
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

MAX_SHARD_BYTES = 256 * 2**20
_CREATING_CLIENT = threading.Lock()
_S3_ATTEMPTS = 8
_S3_PAUSE_S = 0.1  # between attempts, times their number
_WITHIN_URL = re.compile(r"//[^/\s]*@")  # a user and a password, as an endpoint's URL may hold them
_UNFINISHED = ".unfinished-"  # prefix of a local file that is not there yet


@dataclass(frozen=True)
class StoredObject:
    """One object: its key relative to the store, its size in bytes and the version that its store gives it."""

    key: str
    size: int
    etag: str


class ShardError(ValueError):
    """A shard that cannot be read: missing, truncated or not Parquet. The message names it."""


class Store(Protocol):
    """A folder of objects. Keys are relative, with forward slashes. Stores are small values that pickle."""

    @property
    def uri(self) -> str:
        """What `open_store` makes this store of."""

    def child(self, path: str) -> "Store":
        """The store of a folder below this one."""

    def put(self, key: str, data: bytes | pa.Buffer) -> None:
        """Put one object whole; an object of that key is replaced."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Put one object unless its key exists; of several writers exactly one gets True."""

    def get(self, key: str) -> bytes:
        """Read one object. Raises FileNotFoundError."""

    def open(self, key: str) -> pa.NativeFile:
        """Open one object for random access, for columns of a Parquet file. Raises FileNotFoundError."""

    def list(self, prefix: str = "") -> list[StoredObject]:
        """All objects, at any depth, whose key starts with prefix, sorted by key; an absent folder is empty.

        Raises OSError where a part of it cannot be listed.
        """

    def exists(self, key: str) -> bool:
        """Whether there is an object of exactly this key."""

    def delete(self, key: str) -> None:
        """Delete one object; an absent one is no error."""

    def local_file(self, key: str) -> contextlib.AbstractContextManager[Path]:
        """A local path that holds the object while the context lasts; a remote object is downloaded."""


def open_store(uri: str | Path) -> Store:
    """Open the folder that a URI names. Nothing is read or created.

    Args:
        uri: a local path, s3://bucket/prefix, gs://bucket/prefix or abfs://container/prefix.

    Raises:
        ValueError: another scheme, no bucket, or credentials inside the URI.
    """
    text = str(uri)
    if "://" not in text:
        return LocalStore(str(Path(text).expanduser().absolute()))
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ValueError(f"{parts.scheme}:// URI with credentials in it: give them in the environment instead")
    if parts.scheme == "file":
        return LocalStore(parts.path)
    if parts.scheme not in ("s3", "gs", "abfs"):
        raise ValueError(f"unknown scheme {parts.scheme}:// ; use a local path, s3://, gs:// or abfs://")
    if not parts.netloc:
        raise ValueError(f"{text} names no bucket; write {parts.scheme}://BUCKET/PREFIX")
    # Not parts.path: '?' and '#' are ordinary characters of a key.
    normal = text.rstrip("/")
    return S3Store(normal) if parts.scheme == "s3" else ArrowStore(normal)


def check_name(what: str, name: str) -> None:
    """Refuse a name that a run, an index or the like cannot have, for each is one folder in its own place.

    Args:
        what: is named, for the message.

    Raises:
        ValueError: a name that is no single folder's.
    """
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"{what} {name!r} is not a name; use letters, digits, - and _")


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
                        stat = os.stat(path)
                        found.append(StoredObject(key, stat.st_size, f"{stat.st_mtime_ns}-{stat.st_size}"))
        return sorted(found, key=lambda item: item.key)

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
            Path(unfinished).unlink(missing_ok=True)

    def _write(self, path: str, data: bytes | pa.Buffer, key: str) -> None:
        try:
            with open(path, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk's names no file
            raise OSError(error.errno, error.strerror, self._path(key)) from None


@dataclass(frozen=True)
class S3Store:
    """A prefix of an S3 bucket; AWS_ENDPOINT_URL and the usual AWS variables are honoured."""

    uri: str

    def child(self, path: str) -> "S3Store":
        return S3Store(f"{self.uri}/{path}" if path else self.uri)

    def put(self, key: str, data: bytes | pa.Buffer) -> None:
        with _s3_errors(f"{self.uri}/{key}"):
            _s3_client().put_object(Bucket=self._bucket, Key=self._key(key), Body=bytes(data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        with _s3_errors(f"{self.uri}/{key}"):
            for attempt in range(1, _S3_ATTEMPTS + 1):
                try:
                    _s3_client().put_object(Bucket=self._bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
                    break
                except ClientError as error:
                    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                    if status == 412:
                        # A retried request finds its own first attempt: then the object is ours.
                        return self.get(key) == data
                    if status == 501:
                        return _put_lowest_claim(self, key, data)
                    if status != 409 or attempt == _S3_ATTEMPTS:  # 409: another request for the key is under way
                        raise
                time.sleep(_S3_PAUSE_S * attempt)
        return True

    def get(self, key: str) -> bytes:
        with _s3_errors(f"{self.uri}/{key}"):
            return _s3_read(self._bucket, self._key(key))

    def open(self, key: str) -> pa.NativeFile:
        return _s3_filesystem(self._bucket).open_input_file(f"{self._bucket}/{self._key(key)}")

    def list(self, prefix: str = "") -> list[StoredObject]:
        base = self._key("")
        base = f"{base}/" if base else ""
        pages = _s3_client().get_paginator("list_objects_v2")
        with _s3_errors(self.uri):
            return [
                StoredObject(item["Key"][len(base) :], item["Size"], item["ETag"].strip('"'))
                for page in pages.paginate(Bucket=self._bucket, Prefix=base + prefix)
                for item in page.get("Contents", [])
            ]

    def exists(self, key: str) -> bool:
        with contextlib.suppress(FileNotFoundError), _s3_errors(f"{self.uri}/{key}"):
            _s3_client().head_object(Bucket=self._bucket, Key=self._key(key))
            return True
        return False

    def delete(self, key: str) -> None:
        with _s3_errors(f"{self.uri}/{key}"):
            _s3_client().delete_object(Bucket=self._bucket, Key=self._key(key))

    @contextlib.contextmanager
    def local_file(self, key: str) -> Iterator[Path]:
        with _temporary_file(key) as path:
            with _s3_errors(f"{self.uri}/{key}"):
                _s3_client().download_file(self._bucket, self._key(key), str(path))
            yield path

    @property
    def _bucket(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[0]

    def _key(self, key: str) -> str:
        base = self.uri.removeprefix("s3://").partition("/")[2]
        return f"{base}/{key}" if base and key else base or key


@dataclass(frozen=True)
class ArrowStore:
    """gs:// or abfs:// through pyarrow. Both stores show an upload only when it is closed, whole."""

    uri: str

    def child(self, path: str) -> "ArrowStore":
        return ArrowStore(f"{self.uri}/{path}" if path else self.uri)

    def put(self, key: str, data: bytes | pa.Buffer) -> None:
        with self._filesystem.open_output_stream(self._path(key)) as stream:
            stream.write(data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return _put_lowest_claim(self, key, data)

    def get(self, key: str) -> bytes:
        with self._filesystem.open_input_stream(self._path(key)) as stream:
            return stream.read()

    def open(self, key: str) -> pa.NativeFile:
        return self._filesystem.open_input_file(self._path(key))

    def list(self, prefix: str = "") -> list[StoredObject]:
        base = self._path("")
        folder = self._path(prefix.rpartition("/")[0])  # nothing outside it begins like this
        selector = pa.fs.FileSelector(folder, recursive=True, allow_not_found=True)
        infos = (info for info in self._filesystem.get_file_info(selector) if info.is_file)
        found = (
            StoredObject(info.path[len(base) :].lstrip("/"), info.size, f"{info.mtime_ns}-{info.size}")
            for info in infos
        )
        return sorted((item for item in found if item.key.startswith(prefix)), key=lambda item: item.key)

    def exists(self, key: str) -> bool:
        [info] = self._filesystem.get_file_info([self._path(key)])
        return bool(info.is_file)

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(key))

    @contextlib.contextmanager
    def local_file(self, key: str) -> Iterator[Path]:
        with _temporary_file(key) as path:
            with self._filesystem.open_input_stream(self._path(key)) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            yield path

    @property
    def _filesystem(self) -> pa.fs.FileSystem:
        return _arrow_filesystem(self.uri.partition("://")[0])

    def _path(self, key: str) -> str:
        base = self.uri.partition("://")[2]
        return f"{base}/{key}" if key else base


def get_file(uri: str) -> bytes:
    """The bytes of one file that a user names.

    Args:
        uri: a local path, or a URI as for `open_store`.

    Raises:
        FileNotFoundError: there is none.
    """
    if "://" not in uri:
        return Path(uri).expanduser().read_bytes()
    folder, _, name = uri.rpartition("/")
    return open_store(folder).get(name)


def delete_unfinished(store: Store, before: float) -> int:
    """Delete what killed writers left below a local folder; other stores keep nothing of an unfinished put.

    Args:
        before: seconds since the epoch; younger files may belong to a writer that is at work.

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


def put_json(store: Store, key: str, value: Any) -> None:
    """Put a value as indented JSON."""
    store.put(key, _json_bytes(value))


def put_json_if_absent(store: Store, key: str, value: Any) -> Any:
    """Put a value as JSON unless the key exists, and return the value that stands now: this one or an earlier one."""
    return value if store.put_if_absent(key, _json_bytes(value)) else get_json(store, key)


def get_json(store: Store, key: str) -> Any:
    """Read a JSON object. Raises FileNotFoundError, or ValueError naming a damaged one."""
    data = store.get(key)
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"{store.uri}/{key} is not JSON: {error}") from None


def table_to_bytes(table: pa.Table, *, row_group_rows: int = 65_536) -> pa.Buffer:
    """Serialise a table as Parquet for one put: uncompressed and without dictionaries, for vectors do not compress."""
    sink = pa.BufferOutputStream()
    vectors = [name for name in table.schema.names if pa.types.is_large_binary(table.schema.field(name).type)]
    others = [name for name in table.schema.names if name not in vectors]
    pq.write_table(
        table,
        sink,
        compression="NONE",
        use_dictionary=False,
        write_statistics=others,  # minima and maxima of megabyte values would sit in the footer
        row_group_size=row_group_rows,
    )
    return sink.getvalue()


def read_table(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet object, or some of its columns.

    Raises:
        ShardError: the object is missing, truncated or not Parquet.
        OSError: its store cannot be reached or refuses; that says nothing about the object.
    """
    try:
        try:
            with store.open(key) as file:
                return pq.read_table(file, columns=columns, pre_buffer=True)
        except (pa.ArrowInvalid, OSError):  # Arrow has one error for a store that fails and for bytes that are wrong
            data = store.get(key)
    except FileNotFoundError:
        raise ShardError(f"{store.uri}/{key} is missing") from None
    try:
        return pq.read_table(pa.BufferReader(data), columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardError(f"{store.uri}/{key} cannot be read: {str(error).splitlines()[0]}") from error


def not_shared(store: Store) -> str | None:
    """Why a worker must not put anything there: a local folder that only another machine has.

    The driver has put something beside it, so the folder that it lies in stands wherever storage is shared.
    """
    if not isinstance(store, LocalStore) or os.path.isdir(os.path.dirname(store.uri)):
        return None
    return f"{store.uri}: no such folder on {platform.node()}; on several nodes ROOT must be storage that all share"


def new_name(kind: str) -> str:
    """A shard name that sorts by time and that no other writer chooses."""
    return f"{kind}-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _put_lowest_claim(store: Store, key: str, data: bytes) -> bool:
    """put_if_absent where the store has no conditional put: every writer puts a claim, the lowest name wins.

    A writer that is delayed between its claim and its listing for longer than the others take can still lose to a
    lower claim that arrives later; all then read the winner's content, so they agree from there on.
    """
    if store.exists(key):
        return False
    mine = f"{key}.claim-{uuid.uuid4().hex}"
    store.put(mine, data)
    winner = store.list(f"{key}.claim-")[0].key
    store.put(key, store.get(winner))
    return winner == mine


def _walk(top: str) -> Iterator[tuple[str, list[str]]]:
    """Every folder below one, linked ones too, with the names of its files.

    Raises:
        OSError: a folder cannot be read; one that is deleted meanwhile is no error.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    ways: dict[str, tuple[str, ...]] = {top: (os.path.realpath(top),)}  # folder -> the real folders on the way to it
    for folder, folders, names in os.walk(top, onerror=fail, followlinks=True):
        yield folder, names
        way = ways.pop(folder)
        for name in list(folders):
            path = os.path.join(folder, name)
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(way[-1], name)
            if real in way:  # a link back up
                folders.remove(name)
            ways[path] = (*way, real)


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary_file(key: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prvr-") as folder:
        yield Path(folder) / f"object{Path(key).suffix[:16]}"


def _s3_read(bucket: str, key: str) -> bytes:
    """One object's content. botocore repeats a request that fails, but not one of which the answer breaks off."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    for attempt in range(1, _S3_ATTEMPTS):
        with contextlib.suppress(IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
            return _s3_client().get_object(Bucket=bucket, Key=key)["Body"].read()
        time.sleep(_S3_PAUSE_S * attempt)
    return _s3_client().get_object(Bucket=bucket, Key=key)["Body"].read()


@contextlib.contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Raise what boto3 and its two libraries call an error as one of Python's own, with the object's URI."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise _as_file_error(error, uri) from None


def _as_file_error(error: Exception, uri: str) -> Exception:
    """botocore's missing key or bucket as FileNotFoundError, a refusal as PermissionError, the rest of its errors
    (no connection, no credentials, a server that stays busy) as ConnectionError."""
    code = str(getattr(error, "response", {}).get("Error", {}).get("Code"))
    if code in ("NoSuchKey", "NoSuchBucket", "404"):
        return FileNotFoundError(f"{uri} does not exist ({code})")
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return PermissionError(f"no permission for {uri} ({code})")
    return ConnectionError(f"{uri}: {_WITHIN_URL.sub('//', str(error))}")


@functools.cache
def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    with _CREATING_CLIENT:  # boto3's clients serve many threads, but only one at a time may make one
        return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": _S3_ATTEMPTS}))


@functools.cache
def _s3_filesystem(bucket: str) -> pa.fs.FileSystem:
    """Arrow's way to a bucket. Unlike boto3 it does not follow a bucket to its region."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    parts = urlsplit(endpoint) if endpoint else None
    with _s3_errors(f"s3://{bucket}"):
        region = _s3_client().head_bucket(Bucket=bucket).get("BucketRegion")
    return pa.fs.S3FileSystem(
        region=region,
        endpoint_override=parts.netloc if parts else None,
        scheme=parts.scheme if parts else "https",
        retry_strategy=pa.fs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
    )


@functools.cache
def _arrow_filesystem(scheme: str) -> pa.fs.FileSystem:
    if scheme == "gs":
        return pa.fs.GcsFileSystem()
    account = os.environ.get("AZURE_STORAGE_ACCOUNT")
    if not account:
        raise ValueError("abfs:// needs AZURE_STORAGE_ACCOUNT in the environment")
    return pa.fs.AzureFileSystem(account_name=account)

"""A prefix of an S3 bucket. All requests go through boto3, so that one configuration applies to all of them.

Arrow's own S3 client ignores proxies and the `endpoint_url` and `ca_bundle` of ~/.aws/config: it waited 38 to 62 s for
the wrong host before each read, and would send the key ID of a private store to the public one.
"""

import contextlib
import functools
import io
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from prvr_ray.storage.store import StoredObject, put_lowest_claim, temporary_file

_CREATING_CLIENT = threading.Lock()
_S3_ATTEMPTS = 8
_S3_PAUSE_S = 0.1  # pause after attempt n: n times this
_TAIL_BYTES = 2**20  # read together with the size: holds the Parquet footer, and most small shards entirely
_RANGE_BYTES = 16 * 2**20  # per request; a longer read is split into parallel requests
_RANGES = ThreadPoolExecutor(8, thread_name_prefix="s3-range")
_ANONYMOUS = "AWS_NO_SIGN_REQUEST"  # the variable that other readers of public buckets use
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidToken", "400")
_REFUSED = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", *_EXPIRED)
_WITHIN_URL = re.compile(r"//[^/\s]*@")  # user and password, which an endpoint's URL may contain


@dataclass(frozen=True)
class S3Store:
    """A prefix of an S3 bucket; honours the usual AWS variables and files. anonymous: do not sign requests."""

    uri: str
    anonymous: bool = False

    def child(self, path: str) -> "S3Store":
        return S3Store(f"{self.uri}/{path}" if path else self.uri, self.anonymous)

    def put(self, key: str, data: bytes | pa.Buffer) -> None:
        with _s3_errors(f"{self.uri}/{key}"):
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=bytes(data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        with _s3_errors(f"{self.uri}/{key}"):
            for attempt in range(1, _S3_ATTEMPTS + 1):
                try:
                    self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
                    break
                except ClientError as error:
                    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                    if status == 412:
                        # A retry may find the object of its own first attempt: equal content means that it is ours.
                        return self.get(key) == data
                    if status == 501:
                        return put_lowest_claim(self, key, data)
                    if status != 409 or attempt == _S3_ATTEMPTS:  # 409: another request for the key is under way
                        raise
                time.sleep(_S3_PAUSE_S * attempt)
        return True

    def get(self, key: str) -> bytes:
        with _s3_errors(f"{self.uri}/{key}"):
            return _get_body(self._client, self._bucket, self._key(key))[1]

    def open(self, key: str) -> pa.NativeFile:
        return pa.PythonFile(_S3File(self, key), mode="r")

    def stat(self, key: str) -> StoredObject:
        with self._object_errors(key):
            head = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        return StoredObject(key, head["ContentLength"], head["ETag"].strip('"'))

    def list(self, prefix: str = "") -> list[StoredObject]:
        base = self._key("")
        base = f"{base}/" if base else ""
        pages = self._client.get_paginator("list_objects_v2")
        with _s3_errors(self.uri):
            return [
                StoredObject(item["Key"][len(base) :], item["Size"], item["ETag"].strip('"'))
                for page in pages.paginate(Bucket=self._bucket, Prefix=base + prefix)
                for item in page.get("Contents", [])
            ]

    def exists(self, key: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self.stat(key)
            return True
        return False

    def delete(self, key: str) -> None:
        with _s3_errors(f"{self.uri}/{key}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    @contextlib.contextmanager
    def local_file(self, key: str) -> Iterator[Path]:
        with temporary_file(key) as path:
            with self._object_errors(key):
                self._client.download_file(self._bucket, self._key(key), str(path))
            yield path

    @contextlib.contextmanager
    def _object_errors(self, key: str) -> Iterator[None]:
        """Like `_s3_errors`, for requests that start with HEAD. Their answers give no reason, so a GET asks for it."""
        from botocore.exceptions import ClientError

        with _s3_errors(f"{self.uri}/{key}"):
            try:
                yield
            except ClientError as error:
                if _error_code(error) in ("400", "403"):
                    self._client.get_object(Bucket=self._bucket, Key=self._key(key), Range="bytes=0-0")
                raise

    @property
    def _client(self) -> Any:
        return _s3_client(self.anonymous or os.environ.get(_ANONYMOUS, "").lower() in ("1", "yes", "true"))

    @property
    def _bucket(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[0]

    def _key(self, key: str) -> str:
        base = self.uri.removeprefix("s3://").partition("/")[2]
        return f"{base}/{key}" if base and key else base or key


class _S3File(io.RawIOBase):
    """An object as a random-access file: one request reads the tail and the size, then one more for each further part.

    Raises:
        FileNotFoundError: the object does not exist.
    """

    def __init__(self, store: S3Store, key: str):
        self._store, self._key, self._position = store, key, 0
        self._etag, self._tail, self._size = self._read_tail()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = min(self._position, self._size)
        stop = self._size if size < 0 else min(start + size, self._size)
        self._position = stop
        tail_start = self._size - len(self._tail)
        if start >= tail_start:
            return self._tail[start - tail_start : stop - tail_start]
        starts = range(start, stop, _RANGE_BYTES)
        spans = [f"bytes={begin}-{min(begin + _RANGE_BYTES, stop) - 1}" for begin in starts]
        return b"".join(_RANGES.map(self._request, spans) if len(spans) > 1 else map(self._request, spans))

    def _request(self, span: str) -> bytes:
        store = self._store
        with _s3_errors(f"{store.uri}/{self._key}"):
            return _get_body(store._client, store._bucket, store._key(self._key), Range=span, IfMatch=self._etag)[1]

    def _read_tail(self) -> tuple[str, bytes, int]:
        """Return the ETag, the last bytes and the size."""
        from botocore.exceptions import ClientError

        store = self._store
        with _s3_errors(f"{store.uri}/{self._key}"):
            try:
                answer, tail = _get_body(
                    store._client, store._bucket, store._key(self._key), Range=f"bytes=-{_TAIL_BYTES}"
                )
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 416:
                    raise
                return "", b"", 0  # an empty object has no last bytes
        size = answer.get("ContentRange", "").rpartition("/")[2]
        return answer["ETag"], tail, int(size) if size.isdigit() else len(tail)


def _get_body(client: Any, bucket: str, key: str, **options: str) -> tuple[dict[str, Any], bytes]:
    """Return the response to a GET and its content. botocore retries failed requests, but not interrupted responses."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    for attempt in range(1, _S3_ATTEMPTS):
        with contextlib.suppress(IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
            answer = client.get_object(Bucket=bucket, Key=key, **options)
            return answer, answer["Body"].read()
        time.sleep(_S3_PAUSE_S * attempt)
    answer = client.get_object(Bucket=bucket, Key=key, **options)
    return answer, answer["Body"].read()


@contextlib.contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Raise errors of boto3 and its two libraries as Python's own, with the object's URI."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise _as_file_error(error, uri) from None


def _as_file_error(error: Exception, uri: str) -> Exception:
    """Translate a botocore error.

    A missing key or bucket becomes FileNotFoundError, denied access PermissionError, and everything else (no
    connection, no credentials, a server that stays busy) ConnectionError.
    """
    code, said = _error_code(error), str(getattr(error, "response", {}).get("Error", {}).get("Message") or "")
    if code in ("NoSuchKey", "NoSuchBucket", "404"):
        return FileNotFoundError(f"{uri} does not exist ({code})")
    if code in _REFUSED:
        reason = f"{code}: {said}" if said else code
        advice = "; the credentials look expired: renew them and run the command again" if code in _EXPIRED else ""
        return PermissionError(f"no permission for {uri} ({reason}){advice}")
    return ConnectionError(f"{uri}: {_WITHIN_URL.sub('//', str(error))}")


def _error_code(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code"))


@functools.cache
def _s3_client(anonymous: bool) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    options: dict[str, Any] = {"signature_version": UNSIGNED} if anonymous else {}
    retries = {"mode": "standard", "max_attempts": _S3_ATTEMPTS}
    with _CREATING_CLIENT:  # boto3 clients are thread-safe; creating them is not
        return boto3.Session().client("s3", config=Config(retries=retries, max_pool_connections=32, **options))

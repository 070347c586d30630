"""The interface of all stores: whole objects under relative keys."""

import contextlib
import json
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.fs


@dataclass(frozen=True)
class StoredObject:
    """One object: its key relative to the store, its size in bytes and its version according to the store."""

    key: str
    size: int
    etag: str


class Store(Protocol):
    """A folder of objects. Keys are relative, with forward slashes. Stores are small and can be pickled."""

    @property
    def uri(self) -> str:
        """The URI from which `open_store` opens this store."""

    def child(self, path: str) -> "Store":
        """The store of a folder below this one."""

    def put(self, key: str, data: bytes | pa.Buffer) -> None:
        """Put one whole object, replacing any object with that key."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Put one object unless its key exists. Of several concurrent writers, exactly one gets True."""

    def get(self, key: str) -> bytes:
        """Read one object. Raises FileNotFoundError."""

    def open(self, key: str) -> pa.NativeFile:
        """Open one object for random access, such as to columns of a Parquet file. Raises FileNotFoundError."""

    def list(self, prefix: str = "") -> list[StoredObject]:
        """List all objects whose keys start with the prefix, at any depth, sorted by key; a missing folder is empty.

        Raises OSError if any part of the folder cannot be listed.
        """

    def stat(self, key: str) -> StoredObject:
        """Return size and version of one object, without permission to list. Raises FileNotFoundError."""

    def exists(self, key: str) -> bool:
        """Whether an object with exactly this key exists."""

    def delete(self, key: str) -> None:
        """Delete one object if it exists."""

    def local_file(self, key: str) -> contextlib.AbstractContextManager[Path]:
        """Give a local path to the object for the duration of the context; a remote object is downloaded."""


def put_lowest_claim(store: Store, key: str, data: bytes) -> bool:
    """put_if_absent for a store without conditional put: every writer puts a claim, and the lowest name wins.

    If another writer's lower claim arrives after a writer has listed the claims, both believe that they have won; the
    later put then replaces the content, and all readers agree from there on.
    """
    if store.exists(key):
        return False
    mine = f"{key}.claim-{uuid.uuid4().hex}"
    store.put(mine, data)
    winner = store.list(f"{key}.claim-")[0].key
    store.put(key, store.get(winner))
    return winner == mine


@contextlib.contextmanager
def temporary_file(key: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prvr-") as folder:
        yield Path(folder) / f"object{Path(key).suffix[:16]}"


def put_json(store: Store, key: str, value: Any) -> None:
    """Put a value as indented JSON."""
    store.put(key, _json_bytes(value))


def put_json_if_absent(store: Store, key: str, value: Any) -> Any:
    """Put a value as JSON unless the key exists, and return the stored value: this one or an earlier one."""
    return value if store.put_if_absent(key, _json_bytes(value)) else get_json(store, key)


def get_json(store: Store, key: str) -> Any:
    """Read a JSON object. Raises FileNotFoundError, or ValueError, which names the damaged object."""
    data = store.get(key)
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"{store.uri}/{key} is not JSON: {error}") from None


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()

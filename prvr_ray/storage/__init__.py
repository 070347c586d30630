"""The only module that opens a URI: a local folder, s3://, gs:// or abfs://.

Every put is atomic: readers see the whole object or none of it. The package handles objects and Parquet bytes;
`prvr_ray.collection` knows what the tables mean.
"""

from pathlib import Path
from urllib.parse import urlsplit

from prvr_ray.home import expand_home

from .arrow import ArrowStore
from .local import LocalStore, delete_unfinished, find_sharing_problem
from .parquet import MAX_SHARD_BYTES, ShardError, make_shard_name, read_table, table_to_bytes
from .s3 import S3Store
from .store import Store, StoredObject, get_json, put_json, put_json_if_absent

__all__ = [
    "MAX_SHARD_BYTES",
    "ArrowStore",
    "LocalStore",
    "S3Store",
    "ShardError",
    "Store",
    "StoredObject",
    "check_name",
    "delete_unfinished",
    "find_sharing_problem",
    "get_file",
    "get_json",
    "make_shard_name",
    "open_store",
    "put_json",
    "put_json_if_absent",
    "read_table",
    "table_to_bytes",
]


def open_store(uri: str | Path, *, anonymous: bool = False) -> Store:
    """Open the folder at a URI without reading or creating anything.

    Args:
        uri: a local path, s3://bucket/prefix, gs://bucket/prefix or abfs://container/prefix.
        anonymous: send no credentials to s3:// or gs:// (for public buckets).

    Raises:
        ValueError: the scheme is unknown; the URI has no bucket or contains credentials; or `~` has no home folder.
    """
    text = str(uri)
    if "://" not in text:
        return LocalStore(str(expand_home(text).absolute()))
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ValueError(f"{parts.scheme}:// URI contains credentials: set them in the environment instead")
    if parts.scheme == "file":
        return LocalStore(parts.path)
    if parts.scheme not in ("s3", "gs", "abfs"):
        raise ValueError(f"unknown scheme {parts.scheme}://; use a local path, s3://, gs:// or abfs://")
    if not parts.netloc:
        raise ValueError(f"{text} names no bucket; write {parts.scheme}://BUCKET/PREFIX")
    # Not parts.path, which stops at '?' and '#': a key may contain both.
    normal = text.rstrip("/")
    return S3Store(normal, anonymous) if parts.scheme == "s3" else ArrowStore(normal, anonymous)


def check_name(what: str, name: str) -> None:
    """Refuse the name of a run, an index or the like unless it is a valid name for one folder.

    Args:
        what: kind of thing that the name belongs to, for the message.

    Raises:
        ValueError: the name is empty, contains a slash or starts with a dot.
    """
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"{what} {name!r} is not a name; use letters, digits, - and _")


def get_file(uri: str) -> bytes:
    """Read one file named by the user.

    Args:
        uri: a local path, or a URI as for `open_store`.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    if "://" not in uri:
        return expand_home(uri).read_bytes()
    folder, _, name = uri.rpartition("/")
    return open_store(folder).get(name)

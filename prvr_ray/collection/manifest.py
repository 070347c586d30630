"""manifest-*.json: which shards of a folder its readers may see, and which rows of them are superseded.

A folder that has a manifest is read by the newest one alone: no shard is opened to find out what it holds, and a shard
that no manifest names yet belongs to a job that is still at work or was killed. Each manifest lists the whole folder
and is put only if no other writer put that number, so writers cannot overlook each other. At 70 bytes a shard it stays
below 11 MB for the 146,500 shards of 100 million windows.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prvr_ray.storage import Store, get_json

MANIFEST = "manifest-"  # prefix of the keys; a zero-padded number follows, so the newest one sorts last
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ManifestShard:
    """One shard.

    Attributes:
        num_rows, num_bytes: of the whole shard.
        superseded: rows that another row replaces, as half-open ranges one after another: start, stop, start, stop.
    """

    num_rows: int
    num_bytes: int
    superseded: tuple[int, ...] = ()

    @classmethod
    def of_rows(cls, num_rows: int, num_bytes: int, superseded: np.ndarray) -> "ManifestShard":
        """superseded: row numbers, ascending."""
        breaks = np.flatnonzero(np.diff(superseded) != 1) + 1
        starts, stops = np.append(0, breaks), np.append(breaks, len(superseded)) - 1
        ranges = np.stack([superseded[starts], superseded[stops] + 1], axis=1) if len(superseded) else np.zeros(0)
        return cls(num_rows, num_bytes, tuple(ranges.astype(int).ravel().tolist()))

    def superseded_rows(self) -> np.ndarray:
        """The superseded row numbers, ascending, int64."""
        pairs = zip(self.superseded[::2], self.superseded[1::2], strict=True)
        return np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in pairs)])


@dataclass(frozen=True)
class Manifest:
    """One state of a folder.

    Attributes:
        number: of the manifest; the first is 0.
        shards: name -> shard, by name.
        num_videos: videos of the rows that are not superseded; after a compaction at most so many.
    """

    number: int
    shards: dict[str, ManifestShard]
    num_videos: int

    def next(self, shards: dict[str, ManifestShard], num_videos: int) -> "Manifest":
        """The state that follows this one."""
        return Manifest(self.number + 1, dict(sorted(shards.items())), num_videos)


NOTHING = Manifest(-1, {}, 0)  # what stands before the first manifest


def manifest_key(number: int) -> str:
    """Key of the manifest of that number."""
    return f"{MANIFEST}{number:08d}.json"


def newest_manifest(keys: Iterable[str]) -> str | None:
    """The newest manifest among the keys of a folder."""
    return max((key for key in keys if key.startswith(MANIFEST) and key.endswith(".json")), default=None)


def read_manifest(store: Store) -> Manifest | None:
    """Read the newest manifest of a folder; None where there is none.

    Raises:
        ValueError: it is damaged, or of a newer version of this program.
    """
    while key := newest_manifest(item.key for item in store.list(MANIFEST)):
        try:
            return _parse(store, key, get_json(store, key))
        except FileNotFoundError:  # gc deleted it, and before that a newer one came
            continue
    return None


def put_manifest(store: Store, manifest: Manifest) -> bool:
    """Put a manifest unless its number is taken; then another writer was first, whose state must be read."""
    shards = {name: [item.num_rows, item.num_bytes, *item.superseded] for name, item in manifest.shards.items()}
    value = {"format_version": _FORMAT_VERSION, "videos": manifest.num_videos, "shards": shards}
    return store.put_if_absent(manifest_key(manifest.number), json.dumps(value, separators=(",", ":")).encode())


def replace_shards(store: Store, known: Manifest, replaced: Sequence[str], put: dict[str, ManifestShard]) -> Manifest:
    """Put the manifest that has some shards in place of others with the same live rows.

    Args:
        known: the manifest by which the replaced shards were read.
        replaced: names of shards.
        put: the shards that take their place.

    Returns:
        The newest manifest. It names the replaced shards still where another job has changed them meanwhile.
    """
    newest = known
    while all(newest.shards.get(name) == known.shards.get(name) for name in replaced):
        kept = {name: item for name, item in newest.shards.items() if name not in replaced}
        following = newest.next({**kept, **put}, newest.num_videos)
        if put_manifest(store, following):
            return following
        newest = read_manifest(store) or known
    return newest


def _parse(store: Store, key: str, value: Any) -> Manifest:
    version = value["format_version"]
    if version > _FORMAT_VERSION:
        raise ValueError(f"{store.uri}/{key} has format_version {version}, this program reads up to {_FORMAT_VERSION}")
    shards = {name: ManifestShard(item[0], item[1], tuple(item[2:])) for name, item in value["shards"].items()}
    return Manifest(int(key.removeprefix(MANIFEST).removesuffix(".json")), shards, value["videos"])

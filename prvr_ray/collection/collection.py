"""One collection as readers see it: the folders of ROOT, the current row of every video and query, and removals.

No vectors are computed, and no URI is opened but through `prvr_ray.storage`.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.collection.features import FeatureSet
from prvr_ray.collection.shards import LISTED, ShardFolder, first_of
from prvr_ray.storage import Store, check_name, open_store


@dataclass(frozen=True)
class Collection:
    """One ROOT: a local folder or s3://bucket/prefix. With names, exactly those shards of its tables: a plan's."""

    store: Store
    video_names: tuple[str, ...] | None = None
    query_names: tuple[str, ...] | None = None
    cache: dict[str, Any] | None = field(default=None, compare=False, repr=False)

    def cached(self) -> "Collection":
        """This collection for one command: it, and feature sets opened through it, read each shard once.

        Not for workers: what was read would travel with it.
        """
        return replace(self, cache={})

    def forget_listings(self) -> None:
        """Have the next reader of a cached collection list its folders again: workers have put shards there."""
        for of_folder in (self.cache or {}).values():
            of_folder.pop(LISTED, None)

    def plan(self) -> dict[str, list[str]]:
        """The live shards, for a plan.json."""
        return {"videos": self.video_shards.live(), "queries": self.query_shards.live()}

    def pinned(self, plan: dict[str, list[str]]) -> "Collection":
        """This collection, reading exactly a plan's shards; removals apply whenever they came."""
        return replace(self, video_names=tuple(plan["videos"]), query_names=tuple(plan["queries"]))

    def videos(self) -> pa.Table:
        """The current row of every video that has not been removed, by video_id; schema VIDEOS."""
        rows = newest_videos(self.video_shards)
        rows = rows.filter(pc.invert(rows["removed"])).select(schema.VIDEOS.names)
        return rows if self.video_names is None else rows.filter(pc.invert(pc.is_in(rows["video_id"], self.removed())))

    def removed(self) -> pa.Array:
        """The ids of removed videos: no reader may show them."""
        rows = newest_videos(replace(self, video_names=None).video_shards)
        return rows.filter(rows["removed"])["video_id"].combine_chunks()

    def queries(self, split: str | None = None) -> pa.Table:
        """The current row of every query that has not been removed, by query_id; schema QUERIES."""
        rows = newest_queries(self.query_shards).select(schema.QUERIES.names)
        rows = rows.filter(pc.is_valid(rows["text"]))
        return rows if split is None else rows.filter(pc.equal(rows["split"], split))

    def features(self, name: str = "default") -> "FeatureSet":
        """The feature set of that name, whether it exists or not.

        Raises:
            ValueError: a name that is no single folder's.
        """
        check_name("features", name)
        store = self.store.child(f"features/{name}")
        return FeatureSet(
            self,
            store,
            ShardFolder(store.child("videos"), schema.FEATURE_VIDEOS, cache=self._cache_of(f"{name}/videos")),
            ShardFolder(store.child("queries"), schema.FEATURE_QUERIES, cache=self._cache_of(f"{name}/queries")),
        )

    @property
    def video_shards(self) -> ShardFolder:
        return ShardFolder(self.store.child("videos"), schema.VIDEOS, self.video_names, self._cache_of("videos"))

    @property
    def query_shards(self) -> ShardFolder:
        return ShardFolder(self.store.child("queries"), schema.QUERIES, self.query_names, self._cache_of("queries"))

    def _cache_of(self, folder: str) -> dict[Any, Any] | None:
        return None if self.cache is None else self.cache.setdefault(folder, {})


def open_collection(root: str) -> Collection:
    """Open a ROOT: a local folder or a URI. Nothing is read or created."""
    return Collection(open_store(root))


def existing_collection(root: str) -> Collection:
    """Open a ROOT that must hold something.

    Raises:
        ValueError: there is nothing.
    """
    collection = open_collection(root)
    try:
        known = collection.video_shards.live() or collection.query_shards.live()
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    if not known:
        raise ValueError(f"no collection at {collection.store.uri}; `prvr ingest` or `prvr import` makes one")
    return collection


def newest_videos(folder: ShardFolder) -> pa.Table:
    """The current row of every video, tombstones included; VIDEOS, `shard` and `row`."""
    return first_of(folder.scan(), ["video_id"], [("added_at", "descending"), ("shard", "descending")])


def newest_queries(folder: ShardFolder) -> pa.Table:
    """The current row of every query, tombstones included; QUERIES, `shard` and `row`."""
    return first_of(folder.scan(), ["query_id"], [("shard", "descending"), ("row", "descending")])

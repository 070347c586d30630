"""ROOT/imports: which import brought which caption, so that importing a source again replaces it.

Only `prvr import` and `prvr remove` write here. Captions of a ROOT from before this table have no source.
"""

import time
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.collection.collection import Collection
from prvr_ray.collection.shards import ShardFolder, newer_than


@dataclass(frozen=True)
class CaptionSources:
    """The sources of a collection's captions; a snapshot, read once."""

    folder: ShardFolder

    @cached_property
    def _rows(self) -> pa.Table:
        """The rows of each source's latest import."""
        rows = self.folder.scan(["source", "imported_at", "query_id"])
        latest = rows.group_by("source").aggregate([("imported_at", "max")])
        places = pc.index_in(rows["source"], latest["source"].combine_chunks())
        return rows.filter(pc.equal(rows["imported_at"], latest["imported_at_max"].take(places)))

    @cached_property
    def captions(self) -> dict[str, set[str]]:
        """Source -> ids of its captions."""
        found = defaultdict(set)
        for source, query_id in zip(self._rows["source"].to_pylist(), self._rows["query_id"].to_pylist(), strict=True):
            if query_id is not None:
                found[source].add(query_id)
        return dict(found)

    @cached_property
    def owners(self) -> dict[str, list[str]]:
        """Caption -> its sources."""
        found = defaultdict(list)
        for source, query_ids in self.captions.items():
            for query_id in query_ids:
                found[query_id].append(source)
        return dict(found)

    def record(self, source: str, query_ids: list[str], layout: str = "", uri: str = "") -> None:
        """Put that a source has exactly these captions from now on; none: it is removed."""
        if set(query_ids) == self.captions.get(source):
            return
        before = pc.max(self.folder.scan(["imported_at"])["imported_at"]).as_py()
        row = {"source": source, "layout": layout, "uri": uri, "imported_at": newer_than(before, time.time())}
        rows = [row | {"query_id": query_id} for query_id in query_ids] or [row]
        self.folder.append(pa.Table.from_pylist(rows, schema.IMPORTS))


def caption_sources(collection: Collection) -> CaptionSources:
    """The sources of a collection's captions."""
    return CaptionSources(ShardFolder(collection.store.child("imports"), schema.IMPORTS))


def remove_captions(collection: Collection, query_ids: list[str]) -> None:
    """Put tombstones of captions: rows without text, which `Collection.queries` leaves out."""
    if query_ids:
        rows = [{"query_id": query_id} for query_id in query_ids]
        collection.query_shards.append(pa.Table.from_pylist(rows, schema.QUERIES))

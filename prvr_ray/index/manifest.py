"""Makes the shards of an index visible to readers, and reads indexes that are older than manifests.

At its end `prvr index` puts the next manifest (`prvr_ray.collection.manifest`), which lists every shard in the folder.
The shards of a killed job are in no manifest until the next `prvr index` has completed the videos that lack windows.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import ShardFolder
from prvr_ray.collection.manifest import NOTHING, Manifest, ManifestShard, put_manifest, read_manifest
from prvr_ray.index.live_windows import (
    ShardSummary,
    count_windows,
    has_video,
    summarize_shard,
    summarize_shards,
    superseded_rows,
)
from prvr_ray.storage import ShardError, get_json

_NOTES = "written-"  # prefix of JSON objects in an index without a manifest: shard -> one of its videos
_PARALLEL_READS = 16

Summaries = Mapping[str, ShardSummary]


def commit(folder: ShardFolder, known: Summaries) -> Manifest:
    """Put a manifest of all shards that are present, unless the newest one lists the same.

    Args:
        known: shards that were read before, by name; shards never change.

    Returns:
        The newest manifest after the call.

    Raises:
        ShardError: a shard is damaged.
    """
    while True:
        # The manifest is read before the shards are listed. A job that commits in between takes the next number, so
        # this put fails and the loop lists again: neither job can overlook the other's shards.
        newest = read_manifest(folder.store)
        known = summarize_shards(folder, folder.present(), known)
        superseded = superseded_rows(folder, known.values())
        sizes = {item.key: item.size for item in folder.store.list()}
        shards = {
            name: ManifestShard.of_rows(item.num_rows, sizes[name], superseded[name])
            for name, item in known.items()
            if len(superseded[name]) < item.num_rows
        }
        if newest and newest.shards == shards:
            return newest
        num_videos = pc.count_distinct(count_windows(folder, known.values(), superseded)["video_id"]).as_py()
        following = (newest or NOTHING).next(shards, num_videos)
        if put_manifest(folder.store, following):
            return following


def live_counts(folder: ShardFolder, known: Summaries) -> pa.Table:
    """Count the live windows of each version of a video: video_id, added_at and `windows`.

    Args:
        known: all shards that are present.
    """
    return count_windows(folder, known.values(), superseded_rows(folder, known.values()))


def read_without_manifest(folder: ShardFolder, removed: pa.Array) -> tuple[Manifest, list[str]]:
    """Derive the manifest of an index that has none, by opening every shard.

    Args:
        removed: ids of removed videos. A compaction drops their rows, so a noted shard of theirs is not missing.

    Returns:
        The manifest, and the shards that are missing or unreadable, each with its reason.
    """
    live = folder.live()
    sizes = {item.key: item.size for item in folder.store.list()}  # after `live`, so that its new shards have sizes too
    live = [name for name in live if name in sizes]
    with ThreadPoolExecutor(_PARALLEL_READS) as readers:
        found = list(readers.map(lambda name: _summary_or_reason(folder, name), live))
    summaries = [item for item in found if isinstance(item, ShardSummary)]
    superseded = superseded_rows(folder, summaries)
    shards = {
        item.name: ManifestShard.of_rows(item.num_rows, sizes[item.name], superseded[item.name]) for item in summaries
    }
    unreadable = [item for item in found if isinstance(item, str)]
    num_windows = sum(item.num_rows for item in summaries)  # at least as many as videos
    return NOTHING.next(shards, num_windows), [*unreadable, *_missing(folder, set(sizes), summaries, removed)]


def _summary_or_reason(folder: ShardFolder, name: str) -> ShardSummary | str:
    try:
        return summarize_shard(folder, name)
    except ShardError as error:
        return str(error)


def _missing(folder: ShardFolder, keys: set[str], summaries: Sequence[ShardSummary], removed: pa.Array) -> list[str]:
    """List noted shards that do not exist, except where another shard holds the noted video, as after a compaction."""
    notes = [get_json(folder.store, key) for key in sorted(keys) if key.startswith(_NOTES)]
    noted = {name: video_id for note in notes for name, video_id in note.items() if name not in keys}
    return [
        f"{folder.store.uri}/{name} is missing"
        for name, video_id in sorted(noted.items())
        if video_id not in removed.to_pylist() and not has_video(summaries, video_id)
    ]

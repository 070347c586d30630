"""ROOT as readers see it: its tables of shards, feature sets, specs, maintenance and history."""

from .caption_sources import CaptionSources, caption_sources, remove_captions
from .collection import Collection, existing_collection, newest_queries, newest_videos, open_collection
from .features import EncodedQueries, FeatureSet, QueryFeatures, VideoFeatures, of_current_files
from .shards import REPLACED, ShardFolder, by_shard, first_of, live_windows, newer_than, newest_windows, with_columns
from .spec import check_spec, declare_spec, differences, preview_spec, read_spec
from .unmatched import unmatched_captions

__all__ = [
    "REPLACED",
    "CaptionSources",
    "Collection",
    "EncodedQueries",
    "FeatureSet",
    "QueryFeatures",
    "ShardFolder",
    "VideoFeatures",
    "by_shard",
    "caption_sources",
    "check_spec",
    "declare_spec",
    "differences",
    "existing_collection",
    "first_of",
    "live_windows",
    "newer_than",
    "newest_queries",
    "newest_videos",
    "newest_windows",
    "of_current_files",
    "open_collection",
    "preview_spec",
    "read_spec",
    "remove_captions",
    "unmatched_captions",
    "with_columns",
]

"""Captions that name no video of the collection: counted, with examples and the names that come nearest."""

import difflib
from collections import Counter
from collections.abc import Collection as Ids
from typing import Any

import pyarrow as pa

_NUM_NAMED = 5
_MAX_COMPARED = 20_000  # names; difflib takes some 0.1 s for as many


def unmatched_captions(queries: pa.Table, video_ids: Ids[str]) -> dict[str, Any] | None:
    """Find captions whose videos are not in the collection.

    Args:
        queries: columns query_id and video_ids.
        video_ids: known ones, removed ones included: their captions are not lost.

    Returns:
        None where there are none; else `captions` and `video_names`, how many of each, and `such_as`: a few of the
        names, each with the known name that is nearest, if one is near.
    """
    known = set(video_ids)
    names: Counter[str] = Counter()
    num_captions = 0
    for of_query in queries["video_ids"].to_pylist():
        absent = [name for name in of_query or [] if name not in known]
        names.update(absent)
        num_captions += bool(absent)
    if not num_captions:
        return None
    such_as = [_with_nearest(name, known) for name, _ in names.most_common(_NUM_NAMED)]
    return {"captions": num_captions, "video_names": len(names), "such_as": such_as}


def _with_nearest(name: str, known: set[str]) -> str:
    if len(known) > _MAX_COMPARED:
        return name
    by_stem = {video_id.rpartition("/")[2].casefold(): video_id for video_id in sorted(known)}
    stem = name.replace("\\", "/").rpartition("/")[2].casefold()
    near = difflib.get_close_matches(name, known, 1) or [
        by_stem[match] for match in difflib.get_close_matches(stem, by_stem, 1)
    ]
    return f"{name} (nearest: {near[0]})" if near else name

"""Plans the import of a source of captions: assigns ids, finds removed captions and refuses conflicts.

An import replaces the whole source. Captions without ids in the file keep their ids in the collection: when a row is
deleted, the row numbers of the others change, but their ids and vectors must not.
"""

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

from prvr_ray.collection import CaptionSources

Row = dict[str, Any]


@dataclass(frozen=True)
class Replacement:
    """The changes of an import. rows: the source's captions. removed: ids that are no longer in this or any source."""

    rows: list[Row]
    removed: list[str]


def keep_ids(rows: list[Row], generated: set[str], existing: dict[str, Row], own: set[str]) -> None:
    """Replace generated ids, in place, by the captions' ids in the collection, or by free ids for new captions.

    Args:
        rows: rows of schema.QUERIES, as read.
        generated: ids in `rows` that are not from the file: `name/video#number`.
        existing: query_id -> row, the collection's captions.
        own: ids of the source's previous import.
    """
    by_content: dict[Any, deque[str]] = defaultdict(deque)
    for query_id in sorted(existing, key=lambda query_id: (query_id not in own, query_id)):  # prefer the source's own
        by_content[_content(existing[query_id])].append(query_id)
    taken = {row["query_id"] for row in rows} - generated
    left = []
    for row in rows:
        if row["query_id"] not in generated:
            continue
        same = by_content.get(_content(row))
        while same and same[0] in taken:
            same.popleft()
        if same:
            row["query_id"] = same.popleft()
            taken.add(row["query_id"])
        else:
            left.append(row)
    for row in left:  # new captions, and edited ones, which reuse the ids of removed ones
        row["query_id"] = _free_id(row["query_id"], taken, {*existing} - own)
        taken.add(row["query_id"])


def plan_replacement(
    source: str, rows: list[Row], existing: dict[str, Row], own: set[str], known: CaptionSources, replace: bool
) -> Replacement:
    """Compare a source with its previous import (`own`) and with the other sources.

    Raises:
        ValueError: another source uses an id for a different caption, or most of the source's captions would be removed
            without `replace`.
    """
    for row in rows:
        _refuse_other_caption(source, row, existing.get(row["query_id"]), known)
    before = own & existing.keys()
    gone = before - {row["query_id"] for row in rows}
    if 2 * len(gone) > len(before) and not replace:
        raise ValueError(
            f"source {source!r} was imported before, and this import would remove {len(gone)} of its {len(before)}"
            f" captions (such as {min(gone)!r}). If this is intended, add --replace; if this is another source, name"
            " it with --name"
        )
    return Replacement(rows, sorted(query_id for query_id in gone if known.owners.get(query_id, [source]) == [source]))


def _refuse_other_caption(source: str, row: Row, other: Row | None, known: CaptionSources) -> None:
    """Refuse an id that already belongs to a different caption; an edited caption of the same source is allowed."""
    query_id = row["query_id"]
    owners = known.owners.get(query_id, [])
    if other is None or owners == [source]:
        return
    is_same_text, is_same_video = other["text"] == row["text"], set(other["video_ids"]) & set(row["video_ids"])
    # A ROOT of an earlier version does not record sources: the same video then means an edit of the caption.
    if (is_same_text and is_same_video) or (not owners and is_same_video):
        return
    there = " and ".join(repr(name) for name in owners if name != source) or "an import by an earlier version"
    raise ValueError(
        f"query_id {query_id!r} names two captions: {row['text']!r} of {', '.join(row['video_ids'])} in source"
        f" {source!r}, {other['text']!r} of {', '.join(other['video_ids'])} from {there}. Give the captions"
        " different ids, leave the ids out, or remove the other source with `prvr remove --source`"
    )


def _content(row: Row) -> Any:
    moments = sorted((moment["video_id"], moment["start_s"], moment["end_s"]) for moment in row["moments"] or ())
    return row["text"], tuple(sorted(row["video_ids"] or ())), tuple(moments)


def _free_id(preferred: str, taken: set[str], others: set[str]) -> str:
    of_video, _, number = preferred.rpartition("#")
    count = int(number)
    while (found := f"{of_video}#{count}") in taken or found in others:
        count += 1
    return found

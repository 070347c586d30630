"""Sources of videos as tests write and read them: values with defaults, in place of rows of a table."""

from typing import Any, NamedTuple

import pyarrow as pa

from prvr_ray.features.sources import SOURCES, list_sources


class Source(NamedTuple):
    """A row of SOURCES."""

    video_id: str
    uri: str
    size: int = 0
    etag: str = ""
    split: str | None = None
    missing: str | None = None
    metadata: str | None = None


def as_table(sources: list[Source]) -> pa.Table:
    return pa.Table.from_pylist([source._asdict() for source in sources], SOURCES)


def listed(*arguments: Any, **keywords: Any) -> tuple[list[Source], int]:
    """What `list_sources` lists."""
    table, num_skipped = list_sources(*arguments, **keywords)
    return [Source(**row) for row in table.to_pylist()], num_skipped

"""Caption and moment files, ours and those of public datasets, as rows of schema.QUERIES.

A defective window leaves its query without that moment and is counted; a malformed line is an error that names file
and line. This module does not know which videos exist or where rows are stored.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prvr_ray.annotations.rows import Columns, check_record, parse_json, read_lines, read_rows
from prvr_ray.annotations.splits import split_in_name

Window = tuple[float, float]  # start and end, seconds

_PAST_END_S = 0.015  # lengths are given in hundredths of a second: one hundredth past the end is rounding

COLUMNS = """\
columns of csv and jsonl, the same in both:
  text         the caption (or `caption`; required)
  video_id     the relevant video: its path below `prvr ingest --videos`, or its name without ending; with a manifest
               its video_id (or `file`; required)
  query_id     default: made from the source's and the video's name; rows that share one are one query with several
               relevant videos or moments
  start_s      start of the moment in seconds; empty: not known
  end_s        its end in seconds
  duration_s   the video's length in seconds, to find windows that end past it
  split        train, val or test; default: from the file's name, else the video's
example, captions.csv:
  video_id,start_s,end_s,text
  kitchen/a.mp4,12.5,20.1,a person opens a fridge
example, captions.jsonl:
  {"video_id": "kitchen/a.mp4", "start_s": 12.5, "end_s": 20.1, "text": "a person opens a fridge"}"""


@dataclass(frozen=True)
class Caption:
    """One line of a file, about one video. `where` names the line in messages."""

    where: str
    text: str
    video_id: str
    query_id: str | None = None
    split: str | None = None
    windows: list[Window] = field(default_factory=list)
    duration_s: float | None = None


@dataclass(frozen=True)
class Annotations:
    """The captions of the files of one layout.

    Attributes:
        queries: rows of schema.QUERIES in the order of the files; `split` is None if it is not known.
        num_windows: moments as read, the defective ones included.
        num_dropped: defective windows.
        defects: how many windows have which defect; one can have two.
        without_text: the lines, `file:number`, that have no text and are left out.
        generated: ids that the files do not give; they count the captions of a video.
    """

    queries: list[dict[str, Any]]
    num_windows: int
    num_dropped: int
    defects: dict[str, int]
    without_text: list[str]
    generated: set[str] = field(default_factory=set)


_CAPTION_COLUMNS = Columns(
    ("text", "video_id"),
    ("query_id", "start_s", "end_s", "duration_s", "split"),
    aliases={"caption": "text", "file": "video_id"},
)
_LENGTH_COLUMNS = Columns(("id", "length"), ignore_others=True)


class _Row(BaseModel):
    """The values of a row of csv, jsonl or parquet."""

    model_config = ConfigDict(allow_inf_nan=False)

    text: str = Field("", strict=True)  # a number is no text: most likely the columns are mixed up
    video_id: str = Field(min_length=1, coerce_numbers_to_str=True)
    query_id: str | None = Field(None, min_length=1, coerce_numbers_to_str=True)
    start_s: float | None = None
    end_s: float | None = None
    duration_s: float | None = None
    split: str | None = Field(None, min_length=1)


class _Published(BaseModel):
    """A record of a public file; its other fields are of no use here."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, coerce_numbers_to_str=True)


class _TvrRow(_Published):
    vid_name: str
    duration: float
    desc: str
    desc_id: str
    ts: Window | None = None  # absent from the public test split


class _HighlightsRow(_Published):
    vid: str
    duration: float
    query: str
    qid: str
    relevant_windows: list[Window] = []  # absent from the public test split


class _ActivityNetVideo(_Published):
    duration: float
    timestamps: list[Window]
    sentences: list[str]


class _CharadesMoment(_Published):
    video_id: str
    start: float
    end: float


class _CharadesVideo(_Published):
    id: str
    length: float


def read_annotations(layout: str, source: Path, name: str | None = None) -> Annotations:
    """Read a file, or the files of a folder, of one layout.

    Args:
        layout: a key of LAYOUTS.
        source: a file, or a folder; of a folder, the files that LAYOUTS' patterns choose.
        name: begins the query ids that are made up where a file has none; default: the file's own name.

    Raises:
        ValueError: no such layout or file, a malformed line (named), or one query with two texts or splits.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; one of {', '.join(LAYOUTS)}")
    generated: set[str] = set()
    annotations = _collect(_read_captions(layout, _files(layout, source), name, generated))
    if not annotations.queries:
        raise ValueError(f"no captions in {source}")
    return replace(annotations, generated=generated)


def _files(layout: str, source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    patterns = LAYOUTS[layout].patterns
    found = sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()})
    if not found:
        raise ValueError(f"{source}: no such file, nor a folder with {' or '.join(patterns)}")
    return found


def _read_captions(layout: str, files: list[Path], name: str | None, generated: set[str]) -> Iterator[Caption]:
    """Read the files. A missing split comes from the file's name; missing query ids are numbered."""
    numbers: Counter[str] = Counter()
    for file in files:
        split = split_in_name(file.stem)
        for caption in LAYOUTS[layout].read(file):
            query_id = caption.query_id
            if query_id is None:
                of_video = f"{name or file.stem}/{caption.video_id}"
                query_id = f"{of_video}#{numbers[of_video]}"
                numbers[of_video] += 1
                generated.add(query_id)
            yield replace(caption, query_id=query_id, split=caption.split or split)


def _collect(captions: Iterable[Caption]) -> Annotations:
    queries: dict[str, dict[str, Any]] = {}
    defects: Counter[str] = Counter()
    num_windows = num_dropped = 0
    without_text = []
    for caption in captions:
        text = " ".join(caption.text.split())
        if not text:
            without_text.append(caption.where)
            continue
        query = _query_of(replace(caption, text=text), queries)
        for start_s, end_s in caption.windows:
            found = _defects(start_s, end_s, caption.duration_s)
            defects.update(found)
            num_windows += 1
            num_dropped += bool(found)
            if not found:
                _add_once(query["moments"], {"video_id": caption.video_id, "start_s": start_s, "end_s": end_s})
    return Annotations(list(queries.values()), num_windows, num_dropped, dict(defects), without_text)


def _query_of(caption: Caption, queries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    same = {"query_id": caption.query_id, "text": caption.text, "split": caption.split}
    query = queries.setdefault(str(caption.query_id), {**same, "video_ids": [], "moments": []})
    for key, value in same.items():
        if query[key] != value:
            raise ValueError(
                f"{caption.where}: query {caption.query_id!r} had {key} {query[key]!r} before, now {value!r}"
            )
    _add_once(query["video_ids"], caption.video_id)
    return query


def _add_once(values: list[Any], value: Any) -> None:
    if value not in values:
        values.append(value)


def _defects(start_s: float, end_s: float, duration_s: float | None) -> list[str]:
    has = {
        "negative": min(start_s, end_s) < 0,
        "start_after_end": start_s > end_s,
        "zero_length": start_s == end_s,
        "past_the_end": duration_s is not None and max(start_s, end_s) > duration_s + _PAST_END_S,
    }
    return [defect for defect, is_so in has.items() if is_so]


def _read_own(kind: str, file: Path) -> Iterator[Caption]:
    for row in read_rows(file.read_bytes(), str(file), kind, _CAPTION_COLUMNS):
        if row.values:
            yield _own_caption(row.values, row.where)


def _own_caption(values: dict[str, Any], where: str) -> Caption:
    row = check_record(_Row, values, where)
    if (row.start_s is None) != (row.end_s is None):
        raise ValueError(f"{where}: start_s and end_s: give both or neither")
    windows = [] if row.start_s is None or row.end_s is None else [(row.start_s, row.end_s)]
    return Caption(where, row.text, row.video_id, row.query_id, row.split, windows, row.duration_s)


def _read_tvr(file: Path) -> Iterator[Caption]:
    for where, values in _json_lines(file):
        row = check_record(_TvrRow, values, where)
        yield Caption(where, row.desc, row.vid_name, row.desc_id, None, [row.ts] if row.ts else [], row.duration)


def _read_highlights(file: Path) -> Iterator[Caption]:
    for where, values in _json_lines(file):
        row = check_record(_HighlightsRow, values, where)
        yield Caption(where, row.query, row.vid, row.qid, None, row.relevant_windows, row.duration)


def _read_activitynet(file: Path) -> Iterator[Caption]:
    videos = parse_json("".join(line for _, line in read_lines(file)), str(file))
    if not isinstance(videos, dict):
        raise ValueError(f"{file}: expected an object of videos")
    for video_id, values in videos.items():
        where = f"{file}: video {video_id!r}"
        video = check_record(_ActivityNetVideo, values, where)
        if len(video.timestamps) != len(video.sentences):
            raise ValueError(f"{where}: {len(video.timestamps)} timestamps for {len(video.sentences)} sentences")
        for window, sentence in zip(video.timestamps, video.sentences, strict=True):
            yield Caption(where, sentence, video_id, windows=[window], duration_s=video.duration)


def _read_charades(file: Path) -> Iterator[Caption]:
    """`VIDEO START END##sentence`; lengths come from Charades_v1_<split>.csv, where it lies beside the file."""
    lengths_file = file.with_name(f"Charades_v1_{split_in_name(file.stem)}.csv")
    lengths_s = _charades_lengths(lengths_file) if lengths_file.is_file() else {}
    for where, line in _filled_lines(file):
        head, marks, sentence = line.partition("##")
        parts = head.split()
        if not marks or len(parts) != 3:
            raise ValueError(f"{where}: expected VIDEO START END##sentence, found {line[:80]!r}")
        moment = check_record(_CharadesMoment, dict(zip(("video_id", "start", "end"), parts, strict=True)), where)
        window = (moment.start, moment.end)
        yield Caption(where, sentence, moment.video_id, windows=[window], duration_s=lengths_s.get(moment.video_id))


def _charades_lengths(file: Path) -> dict[str, float]:
    rows = read_rows(file.read_bytes(), str(file), "csv", _LENGTH_COLUMNS)
    read = (check_record(_CharadesVideo, row.values, row.where) for row in rows if row.values)
    return {row.id: row.length for row in read}


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    return ((where, parse_json(line, where)) for where, line in _filled_lines(file))


def _filled_lines(file: Path) -> Iterator[tuple[str, str]]:
    return ((where, line.strip()) for where, line in read_lines(file) if line.strip())


@dataclass(frozen=True)
class Layout:
    """A file format: its reader, and the names that its files have in a folder."""

    read: Callable[[Path], Iterator[Caption]]
    patterns: tuple[str, ...]


LAYOUTS = {
    "jsonl": Layout(partial(_read_own, "jsonl"), ("*.jsonl",)),
    "csv": Layout(partial(_read_own, "csv"), ("*.csv",)),
    "tvr": Layout(_read_tvr, ("tvr_*.jsonl",)),
    "activitynet-captions": Layout(_read_activitynet, ("activitynet_captions*.json", "train.json", "val*.json")),
    "charades-sta": Layout(_read_charades, ("charades_sta_*.txt",)),
    "qvhighlights": Layout(_read_highlights, ("*highlights_*.jsonl",)),
}

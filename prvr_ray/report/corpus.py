"""The section about the collection: its size, and the videos that could not be used, with examples."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import Collection
from prvr_ray.collection.features import partial_videos
from prvr_ray.report.figures import draw_groups
from prvr_ray.report.page import Figure, Figures, Section, Table, Text
from prvr_ray.report.wording import count, duration

ANCHOR, TITLE = "corpus", "Corpus and failures"
_EXAMPLES = 3
_PARTIAL_EXAMPLES = 10
_NO_LENGTHS = "No video of known length has been ingested."
_MINUTE = 60
_LENGTHS_S = (0, 10, _MINUTE, 3 * _MINUTE, 10 * _MINUTE, 60 * _MINUTE, np.inf)
_LENGTH_NAMES = ("<10 s", "10-60 s", "1-3 min", "3-10 min", "10-60 min", ">1 h")


@dataclass(frozen=True)
class Corpus:
    """The videos, queries and failures that a report summarises.

    videos: schema VIDEOS. queries: schema QUERIES. durations_s: video_id -> seconds, of ingested videos; NaN where the
    length is unknown, as for released features.
    failures: (error_class, video_id, error), one per video.
    partial: video_id -> decoded fraction, of ingested videos that could not be decoded completely; the worst first.
    """

    videos: pa.Table
    queries: pa.Table
    durations_s: dict[str, float]
    failures: Sequence[tuple[str, str, str]]
    partial: Mapping[str, float] = field(default_factory=dict)

    def video_ids(self, split: str) -> list[str]:
        """List the videos of a split that have features."""
        in_split = self.videos.filter(pc.equal(self.videos["split"], split))["video_id"].to_pylist()
        return [video_id for video_id in in_split if video_id in self.durations_s]


def read_corpus(collection: Collection, features: str) -> Corpus:
    """Read the small columns of a collection and of one feature set, which need not exist."""
    feature_set = collection.features(features)
    segments = feature_set.segments()
    whole = feature_set.complete(segments)
    failed = segments.filter(segments["failed"]).sort_by("video_id")
    failures = {
        video_id: (error_class, video_id, error)
        for video_id, error_class, error in zip(
            *(failed[name].to_pylist() for name in ("video_id", "error_class", "error")), strict=True
        )
    }
    durations_s = dict(zip(whole["video_id"].to_pylist(), whole["duration_s"].to_pylist(), strict=True))
    durations_s = {video_id: math.nan if length_s is None else length_s for video_id, length_s in durations_s.items()}
    return Corpus(
        collection.videos(), collection.queries(), durations_s, list(failures.values()), partial_videos(whole)
    )


def corpus_section(corpus: Corpus) -> Section:
    """Build the section: counts by split, lengths, failures by class."""
    if not len(corpus.videos) and not len(corpus.queries):
        return Section(ANCHOR, TITLE, missing="No videos and no queries: run `prvr ingest` or `prvr import`.")
    lengths = Figures([_length_figure(corpus)]) if _total_s(corpus.durations_s.values()) else Text(_NO_LENGTHS)
    failures = _failure_table(corpus) if corpus.failures else Text("Every video that was read could be used.")
    partial = [_partial_table(corpus)] if corpus.partial else []
    return Section(ANCHOR, TITLE, [_count_table(corpus), failures, *partial, lengths])


def describe(corpus: Corpus, split: str) -> str:
    """Say in a sentence what was searched."""
    searched = [corpus.durations_s[video_id] for video_id in corpus.video_ids(split)]
    num_queries = pc.sum(pc.equal(corpus.queries["split"], split)).as_py() or 0
    sentence = (
        f"{count(len(searched), 'video')} ({duration(_total_s(searched))}) with {count(num_queries, 'query')}: the "
        f"{split} split of a collection of {count(len(corpus.videos), 'video')}."
    )
    return f"{sentence} {count(len(corpus.failures), 'video')} could not be read." if corpus.failures else sentence


def _count_table(corpus: Corpus) -> Table:
    queries = Counter(corpus.queries["split"].to_pylist())
    by_split: dict[str, list[str]] = {}
    for video_id, split in zip(corpus.videos["video_id"].to_pylist(), corpus.videos["split"].to_pylist(), strict=True):
        by_split.setdefault(split, []).append(video_id)
    rows = []
    for split in sorted({*by_split, *queries}, key=str):
        video_ids = by_split.get(split, [])
        lengths = [corpus.durations_s[video_id] for video_id in video_ids if video_id in corpus.durations_s]
        rows.append(
            [str(split), f"{len(video_ids):,}", f"{len(lengths):,}", duration(_total_s(lengths)), f"{queries[split]:,}"]
        )
    return Table("Videos and queries", ["split", "videos", "ingested", "length", "queries"], rows)


def _failure_table(corpus: Corpus) -> Table:
    counts = Counter(error_class for error_class, _, _ in corpus.failures)
    rows = []
    for error_class, number in counts.most_common():
        examples = [f"{video_id}: {error}" for of_class, video_id, error in corpus.failures if of_class == error_class]
        rows.append([error_class, f"{number:,}", "; ".join(examples[:_EXAMPLES])])
    return Table("Videos that could not be used", ["class", "videos", "examples"], rows, has_prose=True)


def _partial_table(corpus: Corpus) -> Table:
    worst = list(corpus.partial.items())[:_PARTIAL_EXAMPLES]
    title = f"{count(len(corpus.partial), 'video')} decoded only in part, the worst first"
    return Table(title, ["video", "decoded"], [[video_id, f"{fraction:.0%}"] for video_id, fraction in worst])


def _length_figure(corpus: Corpus) -> Figure:
    lengths_s = np.array([length_s for length_s in corpus.durations_s.values() if length_s > 0])
    counts, _ = np.histogram(lengths_s, bins=_LENGTHS_S)
    longest = duration(lengths_s.max())
    return Figure(
        draw_groups(_LENGTH_NAMES, {"videos": counts.tolist()}, "videos"),
        f"Lengths of the ingested videos; the longest is {longest}.",
        f"Bar chart of video lengths, the longest {longest}",
    )


def _total_s(lengths_s: Iterable[float]) -> float:
    """Sum the known lengths."""
    return float(np.nansum(list(lengths_s)))

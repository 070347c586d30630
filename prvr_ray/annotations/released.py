"""The layout in which features of the public datasets are released, aligned into rows of our feature tables.

FeatureData/ holds a folder with the student's frames and an HDF5 file with the teacher's; TextData/ holds captions
and two HDF5 files with the queries' features. Vectors are streamed; what cannot be used is left out and named. The
layout has no times: timestamps are NaN and durations unknown. Shapes: F frames, T tokens, D features.
"""

import contextlib
import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prvr_ray.annotations.released_vectors import FrameFile, VectorFile, VectorsError, open_frame_file, open_vector_file
from prvr_ray.annotations.rows import read_lines
from prvr_ray.schema import pack_times, pack_vectors, text_hash

SEGMENT_FRAMES = 1024  # of one row at most
_FAILURE = {"segment": 0, "is_last": True, "num_frames": 0, "decoded_share": 0.0, "warnings": []}
_CAPTION_FILE = re.compile(r"(.+)(train|val|test)\.caption\.txt")


@dataclass(frozen=True)
class Files:
    """Where the parts of one dataset lie. captions: split -> file."""

    dataset: str
    frames: Path
    teacher_frames: Path
    captions: dict[str, Path]
    tokens: Path
    teacher_queries: Path


@dataclass(frozen=True)
class ReleasedCaption:
    """One line of a caption file."""

    caption_id: str
    video_id: str
    text: str
    split: str


@dataclass(frozen=True)
class Released:
    """An open dataset; see `open_released`. `excluded` grows while rows are read: reason -> ids of videos, captions."""

    files: Files
    captions: list[ReleasedCaption]  # of videos that both frame files have
    frames: FrameFile
    teacher_frames: VectorFile
    tokens: VectorFile
    teacher_queries: VectorFile
    excluded: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def splits(self) -> dict[str, str]:
        """video_id -> split, of the videos that have captions and features."""
        return {caption.video_id: caption.split for caption in self.captions}

    @property
    def spec(self) -> dict[str, Any]:
        """spec.json of the feature set: no encoder here makes such vectors, neither from video nor from text."""
        return {
            "imported": "released",
            "shared": False,
            "teacher": {"name": self.teacher_frames.path.stem, "dim": self.teacher_frames.dim},
            "student": {
                "name": self.frames.path.parent.name,
                "dim": self.frames.dim,
                "text_name": self.tokens.path.stem,
                "token_dim": self.tokens.dim,
            },
        }

    @cached_property
    def video_etag(self) -> str:
        """The version of the files that the videos' features come from."""
        return _version(self.frames.path, self.teacher_frames.path)

    @cached_property
    def query_etag(self) -> str:
        """The version of the files that the queries' features come from."""
        return _version(self.tokens.path, self.teacher_queries.path)

    def text_hash(self, caption: ReleasedCaption) -> str:
        """Of a caption and of the files that its features come from."""
        return text_hash(caption.text, self.query_etag)

    def video_rows(self, video_ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Stream rows of schema.FEATURE_VIDEOS without etag and added_at: a failure row for an unusable video."""
        for video_id in video_ids:
            try:
                student_FD, teacher_FD = self.frames.read(video_id), self.teacher_frames.read(video_id)
            except VectorsError as error:
                yield {**_FAILURE, "video_id": video_id, "error_class": error.reason, "error": str(error)}
            else:
                yield from _cut_segments(video_id, student_FD, teacher_FD)

    def query_rows(self, captions: Iterable[ReleasedCaption]) -> Iterator[dict[str, Any]]:
        """Stream rows of schema.FEATURE_QUERIES; unusable captions are excluded."""
        for caption in captions:
            try:
                tokens_TD = _read_caption(self.tokens, caption.caption_id)
                teacher_1D = _one_row(_read_caption(self.teacher_queries, caption.caption_id))
            except VectorsError as error:
                self.exclude(f"caption_{error.reason}", caption.caption_id)
            else:
                yield {
                    "query_id": caption.caption_id,
                    "text_hash": self.text_hash(caption),
                    "num_tokens": len(tokens_TD),
                    "teacher": pack_vectors(teacher_1D),
                    "student": pack_vectors(tokens_TD),
                }

    def exclude(self, reason: str, name: str) -> None:
        """Note that a video or caption is left out."""
        self.excluded.setdefault(reason, []).append(name)


@contextlib.contextmanager
def open_released(source: Path, dataset: str | None = None) -> Iterator[Released]:
    """Open a folder in the released layout and match its parts by name; vectors are not read yet.

    Args:
        source: holds FeatureData/ and TextData/.
        dataset: `tvr`, `activitynet`, ... as in the file names; needed only if there are several.

    Raises:
        ValueError: files are missing, damaged or do not fit together, a line is malformed, or a split is empty.
    """
    files = find_files(source, dataset)
    captions = read_captions(files.captions)
    with contextlib.ExitStack() as stack:
        paths = (files.teacher_frames, files.tokens, files.teacher_queries)
        teacher_frames, tokens, teacher_queries = (stack.enter_context(open_vector_file(path)) for path in paths)
        if teacher_frames.dim != teacher_queries.dim:
            raise ValueError(
                f"{teacher_frames.path} has {teacher_frames.dim} dimensions and {teacher_queries.path} "
                f"{teacher_queries.dim}: they are not of one teacher"
            )
        released = Released(files, [], open_frame_file(files.frames), teacher_frames, tokens, teacher_queries)
        _match(released, captions)
        check_splits(released, released.captions)
        yield released


def find_files(source: Path, dataset: str | None = None) -> Files:
    """Find the files of a dataset by the layout's names. Raises ValueError that lists all that are missing."""
    texts, features = source / "TextData", source / "FeatureData"
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(texts.glob("*.caption.txt")):
        match = _CAPTION_FILE.fullmatch(path.name)
        if match:
            found.setdefault(match[1], {})[match[2]] = path
    if dataset is None and len(found) > 1:
        raise ValueError(f"{source} holds several datasets; choose one with --name: {', '.join(found)}")
    dataset = dataset or next(iter(found), "<dataset>")
    files = Files(
        dataset,
        _frame_folder(features),
        features / f"new_clip_vit_32_{dataset}_vid_features.hdf5",
        found.get(dataset, {"train": texts / f"{dataset}train.caption.txt"}),
        texts / f"roberta_{dataset}_query_feat.hdf5",
        texts / f"clip_ViT_B_32_{dataset}_query_feat.hdf5",
    )
    wanted = (files.frames, files.teacher_frames, files.tokens, files.teacher_queries, *files.captions.values())
    missing = [str(path.relative_to(source)) for path in wanted if not path.exists()]
    if missing:
        raise ValueError(f"{source} is not in the released layout: no {', '.join(missing)}")
    return files


def read_captions(files: dict[str, Path]) -> list[ReleasedCaption]:
    """Read `<video>#enc#<number> text` lines (or `<video>#<number>`) of each split's file.

    Raises:
        ValueError: a malformed line (named), a caption id twice, or a video in two splits.
    """
    captions: dict[str, ReleasedCaption] = {}
    splits: dict[str, str] = {}
    for split, path in files.items():
        for where, line in ((where, line.strip()) for where, line in read_lines(path)):
            if not line:
                continue
            caption_id, _, text = line.partition(" ")
            video_id = caption_id.partition("#")[0]
            if "#" not in caption_id or not video_id or not text.strip():
                raise ValueError(f"{where}: expected VIDEO#enc#NUMBER text, found {line[:60]!r}")
            if caption_id in captions:
                raise ValueError(f"{where}: caption {caption_id} occurs twice")
            if splits.setdefault(video_id, split) != split:
                raise ValueError(f"{where}: video {video_id} is in two splits, {splits[video_id]} and {split}")
            captions[caption_id] = ReleasedCaption(caption_id, video_id, " ".join(text.split()), split)
    return list(captions.values())


def check_splits(released: Released, captions: list[ReleasedCaption]) -> None:
    """Raise ValueError if a split has no usable caption; the message names what was excluded."""
    left = {caption.split for caption in captions}
    for split, path in released.files.captions.items():
        if split not in left:
            reasons = [f"{reason}: {len(names)}, as {names[0]}" for reason, names in released.excluded.items()]
            raise ValueError(f"split {split} is empty: {path} has no caption with features; {'; '.join(reasons)}")


def _match(released: Released, captions: list[ReleasedCaption]) -> None:
    """Keep the captions of videos that both frame files have, and name the others."""
    known = {video_id: video_id in released.teacher_frames for video_id in released.frames.row_numbers}
    captioned = {caption.video_id for caption in captions}
    for video_id, has_teacher in known.items():
        if video_id not in captioned:
            released.exclude("video_without_captions", video_id)
        elif not has_teacher:
            released.exclude("video_without_teacher_frames", video_id)
    for caption in captions:
        if known.get(caption.video_id):
            released.captions.append(caption)
        else:
            released.exclude(
                "caption_of_unusable_video" if caption.video_id in known else "caption_of_unknown_video",
                caption.caption_id,
            )


def _frame_folder(features: Path) -> Path:
    found = sorted(path.parent for path in features.glob("*/feature.bin"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{features} holds several frame features, {names}: leave the one that the student shall see")
    return found[0] if found else features / "<feature>" / "feature.bin"


def _read_caption(file: VectorFile, caption_id: str) -> np.ndarray:
    """Read a caption's vectors; some releases write `#` where others write `#enc#`."""
    video_id, number = caption_id.partition("#")[0], caption_id.rpartition("#")[2]
    spellings = (caption_id, f"{video_id}#enc#{number}", f"{video_id}#{number}")
    return file.read(next((name for name in spellings if name in file), caption_id))


def _one_row(vectors_ND: np.ndarray) -> np.ndarray:
    if len(vectors_ND) != 1:
        raise VectorsError("wrong_shape")
    return vectors_ND


def _cut_segments(video_id: str, student_FD: np.ndarray, teacher_FD: np.ndarray) -> Iterator[dict[str, Any]]:
    count = math.ceil(max(len(student_FD), len(teacher_FD)) / SEGMENT_FRAMES)
    parts = zip(np.array_split(student_FD, count), np.array_split(teacher_FD, count), strict=True)
    for segment, (student, teacher) in enumerate(parts):
        yield {
            "video_id": video_id,
            "segment": segment,
            "is_last": segment == count - 1,
            "num_frames": len(student),
            "timestamps_s": pack_times(np.full(len(student), np.nan)),
            "teacher": pack_vectors(teacher),
            "student": pack_vectors(student),
            "decoded_share": 1.0,
            "warnings": [],
        }


def _version(*paths: Path) -> str:
    stats = [path.stat() for path in paths]
    return hashlib.sha256(repr([(stat.st_size, stat.st_mtime_ns) for stat in stats]).encode()).hexdigest()[:32]

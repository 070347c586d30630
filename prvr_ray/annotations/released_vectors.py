"""The files that hold released vectors: a frame file (feature.bin and what names its rows), and HDF5 matrices.

Vectors stay on disk until they are asked for; only names are held. Shapes: F frames, N rows, D features.
"""

import ast
import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MAX_VALUE_BYTES = 2**30  # of one video or query: a larger one is damage, not data
_CHUNK = 2**20  # characters
_MAX_ENTRY = 2**26  # characters of one video's list: some million frames
_STRING = r"""[uU]?(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
_ENTRY = re.compile(rf"\s*+({_STRING})\s*+:\s*+[\[(]((?:\s*+{_STRING}\s*+,?+)*+)\s*+[\])]\s*+(,|(?=\}}))", re.DOTALL)
_STRINGS = re.compile(_STRING, re.DOTALL)


class VectorsError(ValueError):
    """Vectors of one video or query that cannot be used; `reason` is a word to count by."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class FrameFile:
    """Frame vectors of many videos in one file; see `open_frame_file`."""

    path: Path
    rows_ND: np.ndarray
    row_numbers: dict[str, np.ndarray]  # video -> its rows, -1 for a frame without one

    @property
    def dim(self) -> int:
        return self.rows_ND.shape[1]

    def read(self, video_id: str) -> np.ndarray:
        """The frames of a video that video2frames.txt names, in its order.

        Returns:
            (F, D) float32, F > 0, D = dim, finite in float16.

        Raises:
            VectorsError: missing_frames (they are not in id.txt), empty or not_finite.
        """
        numbers = self.row_numbers[video_id]
        if (numbers < 0).any():
            raise VectorsError("missing_frames")
        return _checked(self.rows_ND[numbers])


@dataclass(frozen=True)
class VectorFile:
    """An HDF5 file with a matrix of `dim` columns per key; see `open_vector_file`. A vector counts as one row."""

    path: Path
    file: Any
    dim: int

    def __contains__(self, key: str) -> bool:
        return _flaw(self.file, key) != "missing"

    def read(self, key: str) -> np.ndarray:
        """The matrix of one key.

        Returns:
            (N, D) float32, N > 0, D = dim, finite in float16.

        Raises:
            VectorsError: missing, not_plain (behind a link, bytes of another file, or too many of them),
                wrong_shape, damaged, empty or not_finite.
        """
        if flaw := _flaw(self.file, key):
            raise VectorsError(flaw)
        try:
            return _checked(self._matrix(self.file[key]))
        except (OSError, KeyError, RuntimeError):  # what h5py raises for a damaged chunk or header
            raise VectorsError("damaged") from None

    def _matrix(self, item: Any) -> np.ndarray:
        shape = getattr(item, "shape", None)
        if not shape or len(shape) > 2 or shape[-1] != self.dim or item.dtype.kind != "f":
            raise VectorsError("wrong_shape")
        if item.external or item.is_virtual or item.nbytes > _MAX_VALUE_BYTES:
            raise VectorsError("not_plain")
        return item[()].astype(np.float32).reshape(-1, self.dim)


@contextlib.contextmanager
def open_vector_file(path: Path) -> Iterator[VectorFile]:
    """Open an HDF5 file; the first of its matrices says how many columns all have.

    Raises:
        ValueError: the file is not HDF5, is cut off, or holds no matrix.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "released features need h5py: pip install -c constraints.txt '.[released]' in the repository"
        ) from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as HDF5: {error}") from None
    with file:
        shapes = (getattr(file[key], "shape", None) for key in file if not _flaw(file, key))
        dim = next((int(shape[-1]) for shape in shapes if shape and shape[-1]), None)
        if dim is None:
            raise ValueError(f"{path} holds no vectors")
        yield VectorFile(path, file, dim)


def open_frame_file(folder: Path) -> FrameFile:
    """Map feature.bin and find each video's rows in it.

    Raises:
        ValueError: a file is missing or malformed, or feature.bin does not have the bytes that shape.txt says.
    """
    parts = ("feature.bin", "shape.txt", "id.txt", "video2frames.txt")
    missing = [name for name in parts if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} has no {', '.join(missing)}")
    num_rows, dim = _read_shape(folder / "shape.txt")
    path = folder / "feature.bin"
    expected, found = num_rows * dim * 4, path.stat().st_size
    if found != expected:
        raise ValueError(f"{path} has {found:,} bytes; shape.txt says {num_rows} x {dim} float32, {expected:,} bytes")
    names = pa.array((folder / "id.txt").read_text(encoding="iso-8859-1").split(), pa.large_string())
    if len(names) != num_rows:
        raise ValueError(f"{folder / 'id.txt'} names {len(names)} frames; shape.txt says {num_rows}")
    rows_ND = np.memmap(path, "<f4", "r", shape=(num_rows, dim))
    return FrameFile(path, rows_ND, _locate(read_frame_lists(folder / "video2frames.txt"), names))


def read_frame_lists(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Stream the entries of a Python dict literal, video -> list of frame names; nothing is evaluated.

    Raises:
        ValueError: anything but such a literal, or its end is missing; the message says after how many characters.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        text, position = file.read(_CHUNK), 0
        opening = re.match(r"\s*\{", text)
        if not opening:
            raise ValueError(f"{path} is not a dict of videos: it begins with {text[:20]!r}")
        end = opening.end()
        while True:
            while entry := _ENTRY.match(text, end):
                yield _unquoted(entry[1]), [_unquoted(name) for name in _STRINGS.findall(entry[2])]
                end = entry.end()
            text, position = text[end:], position + end
            more = file.read(_CHUNK) if len(text) < _MAX_ENTRY else ""
            if not more:
                break
            text, end = text + more, 0
    if text.strip() != "}":
        raise ValueError(f"{path}: damaged or cut off after {position:,} characters, at {text[:40]!r}")


def _unquoted(literal: str) -> str:
    if "\\" not in literal:
        return literal.lstrip("uU")[1:-1]
    try:
        return ast.literal_eval(literal)
    except SyntaxError:
        raise ValueError(f"{literal[:40]} is not a Python string") from None


def _read_shape(path: Path) -> tuple[int, int]:
    parts = path.read_text(encoding="utf-8", errors="replace").split()
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{path} must hold two positive numbers, frames and dimensions, not {' '.join(parts)[:40]!r}")
    return int(parts[0]), int(parts[1])


def _locate(frame_lists: Iterable[tuple[str, list[str]]], names: pa.Array) -> dict[str, np.ndarray]:
    video_ids, counts, chunks = [], [], []
    for video_id, frames in frame_lists:
        video_ids.append(video_id)
        counts.append(len(frames))
        chunks.append(pa.array(frames, pa.large_string()))
    wanted = pa.chunked_array(chunks, pa.large_string())
    numbers = pc.fill_null(pc.index_in(wanted, value_set=names), -1).to_numpy()
    return dict(zip(video_ids, np.split(numbers, np.cumsum(counts)[:-1]), strict=True)) if video_ids else {}


def _flaw(file: Any, key: str) -> str | None:
    """Why a key is no object of the file's own: missing or not_plain; None where it is one.

    Links to other files would let a download read what it likes on this machine. So each step of the key's path is
    looked at before it is taken; `key in file` would follow them.
    """
    import h5py

    names = [name for name in key.encode("utf-8", "surrogateescape").split(b"/") if name]
    paths = [b"/".join(names[:end]) for end in range(1, len(names) + 1)]
    links = file.id.links
    try:
        for path in paths:
            if not links.exists(path):
                return "missing"
            if links.get_info(path).type != h5py.h5l.TYPE_HARD:
                return "not_plain"
    except (OSError, KeyError, RuntimeError):  # what h5py raises below a matrix, or in a damaged group
        return "missing"
    return None if paths else "missing"


def _checked(vectors_ND: np.ndarray) -> np.ndarray:
    if not len(vectors_ND):
        raise VectorsError("empty")
    with np.errstate(over="ignore"):
        if not np.isfinite(vectors_ND.astype(np.float16)).all():
            raise VectorsError("not_finite")
    return vectors_ND

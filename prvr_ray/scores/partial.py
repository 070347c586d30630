"""A partial of a score job: the best answers of one unit to one block, as the values of a safetensors object.

Shape suffixes: Q queries, K places, E extras, M places with times.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from prvr_ray.retrieval.blocks import Names, as_tensor
from prvr_ray.retrieval.topk import Answers

_PLACE_VALUES = ("scores", "videos", "windows")  # (Q, K) each
_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind) for name, kind in (("F64", "<f8"), ("F32", "<f4"), ("I32", "<i4"), ("U8", "u1"))
}
_PLACES_AT_ONCE = 1 << 22  # merged at a time, as ordinals of 16 bytes each


# The library's own `load` and `save` make one and two copies of the values, of 0.8 GB at 4,096 queries and k = 10,000.
def load_partial(data: bytes) -> dict[str, np.ndarray]:
    """Read a safetensors object; the arrays are views of `data`.

    Raises:
        ValueError: it is none, or is damaged.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin]) if 8 < begin <= len(data) else None
    if not isinstance(header, dict):
        raise ValueError("a partial is damaged: it has no header")
    found = {}
    for name, item in header.items():
        if name != "__metadata__":
            start, stop = item["data_offsets"]
            dtype: np.dtype[Any] = _DTYPES[item["dtype"]]
            values = np.frombuffer(data, dtype, (stop - start) // dtype.itemsize, begin + start)
            found[name] = values.reshape(item["shape"])
    return found


def save_partial(values: dict[str, np.ndarray]) -> bytes:
    """Write arrays as a safetensors object, those of large items first, so that all are aligned."""
    kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
    header, arrays, stop = {}, [], 0
    for name in sorted(values, key=lambda name: (-values[name].itemsize, name)):
        array = np.ascontiguousarray(values[name])
        start, stop = stop, stop + array.nbytes
        header[name] = {"dtype": kinds[array.dtype], "shape": array.shape, "data_offsets": [start, stop]}
        arrays.append(array.reshape(-1).view(np.uint8).data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *arrays])


def pack_names(names: list[str]) -> np.ndarray:
    """Strings as an array of bytes, for a safetensors object."""
    return np.frombuffer(json.dumps(names).encode(), np.uint8)


def unpack_names(data: np.ndarray) -> list[str]:
    """Read what `pack_names` wrote."""
    return json.loads(data.tobytes())


class Partial:
    """A partial as it was put, its videos under the ordinals of `names`."""

    def __init__(self, values: dict[str, np.ndarray], names: Names):
        self._values = values
        own_names = unpack_names(values["names"])
        ordinals = names.ordinals([name for name in own_names if name])
        if own_names[:1] == [""]:  # empty places have the lowest ordinal
            ordinals = torch.cat([torch.tensor([-1]), ordinals])
        self._ordinals = ordinals

    def answers(self, rows: slice) -> Answers:
        """All answers to some queries, with their branch scores."""
        return self._places((rows,), self._values["branch_scores"][rows])

    def timed_answers(self, num_moments: int) -> Answers:
        """The first answers to all queries, with their times."""
        return self._places((slice(None), slice(num_moments)), self._values["times"][:, :num_moments])

    def _places(self, where: tuple[slice, ...], extras_QKE: np.ndarray) -> Answers:
        scores, videos, windows = (as_tensor(self._values[name][where]) for name in _PLACE_VALUES)
        return Answers(scores, self._ordinals[videos.long()], windows.long(), as_tensor(extras_QKE))


def partial_values(best: Answers, names: list[str], number_of: np.ndarray) -> dict[str, np.ndarray]:
    """What a partial keeps of the best answers of a search.

    Args:
        names: video ordinal -> video_id.
        number_of: window ordinal -> its number within its video; the last for empty places, whose ordinal is -1.
    """
    known, videos_QK = _compact(best.videos_QK.cpu(), len(names))
    windows_QK = np.empty(videos_QK.shape, np.int32)
    for row_K, numbers_K in zip(best.windows_QK.cpu().numpy(), windows_QK, strict=True):
        numbers_K[:] = number_of[row_K]
    return {
        "scores": best.scores_QK.cpu().numpy(),
        "videos": videos_QK,
        "windows": windows_QK,
        "branch_scores": best.extras_QKE.cpu().numpy(),
        "names": pack_names(["" if video < 0 else names[video] for video in known]),
    }


def slice_queries(num_queries: int, k: int) -> Iterator[slice]:
    """Cut queries into slices of at most _PLACES_AT_ONCE answers."""
    step = max(1, _PLACES_AT_ONCE // k)
    return (slice(start, start + step) for start in range(0, num_queries, step))


def _compact(videos_QK: torch.Tensor, num_videos: int) -> tuple[list[int], np.ndarray]:
    """Return the ordinals that occur, ascending, and for each place the index of its ordinal among them, int32.

    A lookup table over all videos does it: `unique` sorts, which for 41 million places takes three times their memory.
    """
    is_known = torch.zeros(num_videos + 1, dtype=torch.bool)  # from -1 on
    for row_K in videos_QK:
        is_known[row_K + 1] = True
    number_of = (is_known.cumsum(0) - 1).int().numpy()
    numbers_QK = np.empty(videos_QK.shape, np.int32)
    for row_K, numbers_K in zip(videos_QK.numpy(), numbers_QK, strict=True):
        numbers_K[:] = number_of[row_K + 1]
    return (is_known.nonzero().flatten() - 1).tolist(), numbers_QK

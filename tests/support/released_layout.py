"""Renders a small dataset in the layout in which features of the public datasets are released."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np


@dataclass
class World:
    """What was rendered. frames and teacher_frames: video -> (F, D); tokens and teacher_queries: caption -> (T, D).

    Captions of a video follow moments of it: its frames, tokens and the teacher's vectors are noisy projections of the
    same latent points, so a student can learn from them.
    """

    folder: Path
    dataset: str
    frames: dict[str, np.ndarray]
    teacher_frames: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    teacher_queries: dict[str, np.ndarray]
    captions: dict[str, dict[str, str]]  # split -> caption -> text


def render(
    folder: Path,
    num_videos: dict[str, int] | None = None,
    *,
    dataset: str = "tiny",
    video_dim: int = 24,
    token_dim: int = 20,
    teacher_dim: int = 16,
    seed: int = 0,
) -> World:
    """Write FeatureData/ and TextData/ below the folder; of each split as many videos as `num_videos` says."""
    rng = np.random.default_rng(seed)
    to_frames, to_tokens, to_teacher = (rng.normal(size=(8, dim)) for dim in (video_dim, token_dim, teacher_dim))
    world = World(folder, dataset, {}, {}, {}, {}, {})
    for split, count in (num_videos or {"train": 6, "val": 3, "test": 3}).items():
        world.captions[split] = {}
        for number in range(count):
            video_id = f"v_{split}_{number}"
            latent_F8 = np.repeat(rng.normal(size=(3, 8)), rng.integers(2, 9, 3), axis=0)
            world.frames[video_id] = _noisy(rng, latent_F8 @ to_frames)
            world.teacher_frames[video_id] = _noisy(rng, latent_F8[:: rng.integers(1, 3)] @ to_teacher)
            for moment in range(rng.integers(1, 4)):
                caption_id = f"{video_id}#enc#{moment}"
                world.captions[split][caption_id] = f"moment {moment}  of {video_id}"
                point_8 = latent_F8[rng.integers(len(latent_F8))]
                world.tokens[caption_id] = _noisy(rng, np.repeat(point_8[None] @ to_tokens, rng.integers(3, 9), axis=0))
                world.teacher_queries[caption_id] = _noisy(rng, point_8[None] @ to_teacher)
    write(world)
    return world


def write(world: World, *, caption_mark: str = "#enc#") -> None:
    """Write all files of a world; `caption_mark` is what the HDF5 files have in place of `#enc#`."""
    texts, features = world.folder / "TextData", world.folder / "FeatureData"
    (features / "i3d").mkdir(parents=True, exist_ok=True)
    texts.mkdir(exist_ok=True)
    write_frames(features / "i3d", world.frames)
    write_vectors(features / f"new_clip_vit_32_{world.dataset}_vid_features.hdf5", world.teacher_frames)
    for prefix, vectors in (("roberta", world.tokens), ("clip_ViT_B_32", world.teacher_queries)):
        marked = {caption_id.replace("#enc#", caption_mark): value for caption_id, value in vectors.items()}
        write_vectors(texts / f"{prefix}_{world.dataset}_query_feat.hdf5", marked)
    for split, captions in world.captions.items():
        lines = [f"{caption_id} {text}\n" for caption_id, text in captions.items()]
        (texts / f"{world.dataset}{split}.caption.txt").write_text("".join(lines))


def write_frames(folder: Path, frames: dict[str, np.ndarray]) -> None:
    """Write the frame file; rows lie in shuffled order, as nothing promises that they are sorted."""
    places = [(video_id, number) for video_id, rows in frames.items() for number in range(len(rows))]
    order = np.random.default_rng(1).permutation(len(places))
    names = [f"{video_id}_{number}" for video_id, number in places]
    rows_ND = np.concatenate(list(frames.values())).astype("<f4")
    rows_ND[order].tofile(folder / "feature.bin")
    (folder / "shape.txt").write_text(f"{rows_ND.shape[0]} {rows_ND.shape[1]}")
    (folder / "id.txt").write_text(" ".join(names[place] for place in order), encoding="iso-8859-1")
    lists = {video_id: [f"{video_id}_{number}" for number in range(len(rows))] for video_id, rows in frames.items()}
    (folder / "video2frames.txt").write_text(repr(lists))


def write_vectors(path: Path, vectors: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for key, value in vectors.items():
            file[key] = value


def _noisy(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    return (values + 0.1 * rng.normal(size=values.shape)).astype(np.float32)

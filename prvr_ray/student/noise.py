"""A teacher made worse on purpose, to see how good one must be: noise on its vectors, the same at every reading.

Shapes: R rows, D features.
"""

from dataclasses import dataclass, replace

import numpy as np

from prvr_ray.student.cache import FeatureCache, Ragged


@dataclass(frozen=True)
class NoisyRagged(Ragged):
    """Items with noise: each row plus a random vector about `noise` times as long as the row itself.

    salt: tells arrays apart, so that equal numbers of different arrays do not get equal noise.
    """

    noise: float
    salt: int

    def take(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows_RD, lengths = super().take(items)
        rows_RD = rows_RD.astype(np.float32)
        shapes = [(int(length), rows_RD.shape[1]) for length in lengths]
        drawn = [
            np.random.default_rng([self.salt, int(item)]).standard_normal(shape, np.float32)
            for item, shape in zip(items, shapes, strict=True)
        ]
        scale_R1 = self.noise * np.linalg.norm(rows_RD, axis=1, keepdims=True) / np.sqrt(rows_RD.shape[1])
        return rows_RD + scale_R1 * np.concatenate([np.empty((0, rows_RD.shape[1]), np.float32), *drawn]), lengths


def degrade_teacher(cache: FeatureCache, noise: float) -> FeatureCache:
    """The same features with a worse teacher; the student's inputs stay as they are.

    Args:
        noise: expected length of the noise on a vector, in units of the vector's own length; 0: none.
    """
    if not noise:
        return cache
    return replace(
        cache,
        teacher_frames=_noisy(cache.teacher_frames, noise, salt=0),
        teacher_queries=_noisy(cache.teacher_queries, noise, salt=1),
    )


def _noisy(array: Ragged, noise: float, salt: int) -> NoisyRagged:
    return NoisyRagged(array.values_nD, array.starts, array.lengths, noise, salt)

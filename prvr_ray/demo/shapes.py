"""Drawing for the demo world: ten shapes, eight colours, plain and textured backgrounds, as numpy arrays.

Shapes: H and W pixels; images are float32 (H, W, 3) in [0, 255]. What happens when is planned in world.py.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 180),
    "orange": (240, 140, 30),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}


def _polygon(x: np.ndarray, y: np.ndarray, corners: int) -> np.ndarray:
    """The largest distance over the sides of a regular polygon, 1 on its border; one side faces down."""
    angles = np.pi / 2 + 2 * np.pi * np.arange(corners, dtype=np.float32) / corners
    return np.max([x * np.cos(a) + y * np.sin(a) for a in angles], axis=0) / np.cos(np.pi / corners)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from_tip = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)  # angle to the nearest of 5 tips
    # The side from a tip (1, 0) to a notch at radius 0.42 and 36 degrees lies on the line u + 2.674 v = 1.
    return np.hypot(x, y) * (np.cos(from_tip) + 2.674 * np.sin(from_tip))


def _moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y), 1.75 - np.hypot(x - 0.55, y))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, 1.1 * (y - 0.15) + 0.75 * np.sqrt(np.abs(x) + 1e-6)) / 0.95


# Each maps coordinates (x to the right, y down) to a value that is below 1 inside the shape; radius about 1.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": np.hypot,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) / 0.85,
    "diamond": lambda x, y: np.abs(x) + np.abs(y),
    "bar": lambda x, y: np.maximum(np.abs(x), 3 * np.abs(y)),
    "triangle": lambda x, y: _polygon(x, y - 0.1, 3),
    "star": _star,
    "cross": lambda x, y: np.minimum(np.maximum(np.abs(x) * 3, np.abs(y)), np.maximum(np.abs(x), np.abs(y) * 3)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) * 4,
    "moon": _moon,
    "heart": _heart,
}


def draw(image_HW3: np.ndarray, shape: str, color: tuple[float, ...], x: float, y: float, radius: float) -> None:
    """Paint a shape into an image, with soft borders.

    Args:
        x, y: its centre, as shares of width and height; it may lie outside.
        radius: in shares of the height.
    """
    height, width, _ = image_HW3.shape
    columns, rows = _grid(height, width)
    inside = 1 - SHAPES[shape]((columns - x * width) / (radius * height), (rows - y * height) / (radius * height))
    opacity = np.clip(inside * radius * height + 0.5, 0, 1)[..., None]
    image_HW3 += opacity * (np.asarray(color, np.float32) - image_HW3)


def textured_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Two dull colours, mixed by three random gratings."""
    columns, rows = _grid(height, width)
    waves = np.zeros((height, width), np.float32)
    for _ in range(3):
        angle, period, phase = rng.uniform(0, np.pi), rng.uniform(6, 40), rng.uniform(0, 2 * np.pi)
        waves += np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * 2 * np.pi / period + phase)
    mix = 1 / (1 + np.exp(-2 * waves[..., None]))
    grey = rng.uniform(90, 190)
    one, other = (grey + rng.uniform(-30, 30) + rng.uniform(-30, 30, 3) for _ in range(2))
    return (one + mix * (other - one)).astype(np.float32)


def plain_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A light colour with a faint texture."""
    light = rng.uniform(170, 255, 3).astype(np.float32)
    return light + rng.uniform(0, 0.4) * (textured_background(rng, height, width) - light)


@lru_cache(maxsize=4)
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    return columns, rows

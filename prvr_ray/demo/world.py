"""The demo world: captioned, untrimmed H.264 videos of moving coloured shapes, and captioned stills for the teacher.

A video is a textured scene in which events happen one after the other. Described events (moments) have a caption,
distractors between them have none. Everything follows from a seed; drawing itself is in shapes.py.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np

from .shapes import COLORS, SHAPES, draw, plain_background, textured_background

FPS = 5
HEIGHT, WIDTH = 96, 128
MOMENTS_PER_VIDEO = 3
T = TypeVar("T")
Color = tuple[float, float, float]  # RGB in [0, 255]
# Distractors' colours: no caption names them.
_GREYS: tuple[Color, ...] = ((90, 90, 90), (130, 130, 130), (170, 170, 170))


@dataclass(frozen=True)
class Motion:
    """A path over an event: centre and radius at its start and its end. None: a random, fixed coordinate."""

    phrases: tuple[str, ...]
    x: tuple[float, float] | None = None  # fraction of the width
    y: tuple[float, float] | None = None  # fraction of the height, downwards
    radius: tuple[float, float] = (0.2, 0.2)  # fraction of the height


MOTIONS = (
    Motion(("moves to the left", "slides left"), x=(0.85, 0.15)),
    Motion(("moves to the right", "slides right"), x=(0.15, 0.85)),
    Motion(("rises", "moves up"), y=(0.85, 0.15)),
    Motion(("falls", "moves down"), y=(0.15, 0.85)),
    Motion(("grows", "gets bigger"), radius=(0.08, 0.34)),
    Motion(("shrinks", "gets smaller"), radius=(0.34, 0.08)),
)

Kind = tuple[str, str, Motion]  # color, shape, motion: all that a caption says


@dataclass(frozen=True)
class Event:
    """One moving shape; times are half-open [start_s, end_s) in the video."""

    start_s: float
    end_s: float
    shape: str
    color: Color
    x: tuple[float, float]
    y: tuple[float, float]
    radius: tuple[float, float]
    caption: str  # empty for a distractor

    def draw(self, image_HW3: np.ndarray, time_s: float) -> None:
        """Paint the shape at its position at that time; outside the event, paint nothing."""
        if self.start_s <= time_s < self.end_s:
            fraction = (time_s - self.start_s) / (self.end_s - self.start_s)
            x, y, radius = (begin + fraction * (end - begin) for begin, end in (self.x, self.y, self.radius))
            draw(image_HW3, self.shape, self.color, x, y, radius)


@dataclass(frozen=True)
class Script:
    """Everything that happens in one video."""

    video_id: str
    split: str
    seed: tuple[int, ...]  # of the background
    duration_s: float
    events: tuple[Event, ...]

    @property
    def moments(self) -> list[Event]:
        return [event for event in self.events if event.caption]


def plan_world(seed: int, num_videos: dict[str, int]) -> list[Script]:
    """Write the scripts of all splits.

    Args:
        seed: the same seed gives the same videos, whatever the other splits' sizes.
        num_videos: split -> videos. Within a split, no kind of event recurs before every kind has occurred.
    """
    scripts = []
    for split, count in num_videos.items():
        deals = _deal_kinds(np.random.default_rng([seed, *split.encode()]))
        for number in range(count):
            video_id = f"{split}/{split}-{number:04d}.mp4"
            scripts.append(_script(video_id, split, (seed, *split.encode(), number), next(deals)))
    return scripts


def queries_of(scripts: list[Script]) -> list[dict[str, Any]]:
    """One query per described event: query_id, text, video_ids, split, moments (video_id, start_s, end_s)."""
    return [
        {
            "query_id": f"{script.video_id}#{number}",
            "text": moment.caption,
            "video_ids": [script.video_id],
            "split": script.split,
            "moments": [{"video_id": script.video_id, "start_s": moment.start_s, "end_s": moment.end_s}],
        }
        for script in scripts
        for number, moment in enumerate(script.moments)
    ]


def frames_of(script: Script) -> Iterator[np.ndarray]:
    """Draw a video's frames, uint8 (HEIGHT, WIDTH, 3), at FPS frames per second."""
    rng = np.random.default_rng(script.seed)
    background = textured_background(rng, HEIGHT, WIDTH)
    for number in range(round(script.duration_s * FPS)):
        image = background.copy()
        for event in script.events:
            event.draw(image, number / FPS)
        yield np.clip(image, 0, 255).astype(np.uint8)


def render(script: Script, folder: str) -> Path:
    """Write a video below a folder unless it exists: H.264, a keyframe every 2 s, renamed into place when complete."""
    path = Path(folder) / script.video_id
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "26", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", 2 * FPS
        for image in frames_of(script):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    partial.rename(path)
    return path


def still(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    """Draw a captioned picture for the teacher: one shape on a plain, light background, uint8 (size, size, 3)."""
    shape, color = _pick(rng, list(SHAPES)), _pick(rng, list(COLORS))
    image = plain_background(rng, size, size)
    (x, y), radius = rng.uniform(0.15, 0.85, 2), rng.uniform(0.1, 0.36)
    draw(image, shape, COLORS[color], x, y, radius)
    places = [place for place, holds in _places(x, y, radius) if holds]
    caption = _article(f"{color} {shape}") + (f" {_pick(rng, places)}" if places and rng.random() < 0.6 else "")
    return np.clip(image, 0, 255).astype(np.uint8), caption


def _places(x: float, y: float, radius: float) -> list[tuple[str, bool]]:
    return [
        ("on the left", x < 0.4),
        ("on the right", x > 0.6),
        ("at the top", y < 0.4),
        ("at the bottom", y > 0.6),
        ("that is big", radius > 0.27),
        ("that is small", radius < 0.17),
    ]


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _deal_kinds(rng: np.random.Generator) -> Iterator[list[Kind]]:
    """Deal (color, shape, motion) to videos from a shuffled deck of all kinds, shuffled anew when it runs out."""
    kinds = list(itertools.product(COLORS, SHAPES, MOTIONS))
    deck: list[Kind] = []
    while True:
        if len(deck) < MOMENTS_PER_VIDEO:
            deck += [kinds[number] for number in rng.permutation(len(kinds))]
        yield [deck.pop(0) for _ in range(MOMENTS_PER_VIDEO)]


def _script(video_id: str, split: str, seed: tuple[int, ...], kinds: list[Kind]) -> Script:
    """Lay out the described events with gaps before, between and after them; most gaps hold a distractor."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    now = 0.0
    for kind in [*kinds, None]:
        gap_s = rng.uniform(1.5, 4.0)
        if rng.random() < 0.6:
            events.append(_distractor(rng, now, now + gap_s))
        now += gap_s
        if kind:
            events.append(_described(rng, kind, now, now + rng.uniform(3.0, 6.0)))
            now = events[-1].end_s
    return Script(video_id, split, seed, now, tuple(events))


def _described(rng: np.random.Generator, kind: Kind, start_s: float, end_s: float) -> Event:
    color, shape, motion = kind
    red, green, blue = (rng.uniform(0.8, 1.05) * np.array(COLORS[color])).tolist()
    caption = f"{_article(f'{color} {shape}')} {_pick(rng, motion.phrases)}"
    return _event(rng, (start_s, end_s), shape, (red, green, blue), motion, caption)


def _distractor(rng: np.random.Generator, start_s: float, end_s: float) -> Event:
    return _event(rng, (start_s, end_s), _pick(rng, list(SHAPES)), _pick(rng, _GREYS), _pick(rng, MOTIONS), "")


def _event(
    rng: np.random.Generator, times_s: tuple[float, float], shape: str, color: Color, motion: Motion, caption: str
) -> Event:
    x, y, size = rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75), rng.uniform(0.8, 1.2)
    radius = (size * motion.radius[0], size * motion.radius[1])
    return Event(*times_s, shape, color, motion.x or (x, x), motion.y or (y, y), radius, caption)


def _pick(rng: np.random.Generator, pool: Sequence[T]) -> T:
    return pool[int(rng.integers(len(pool)))]

"""Video files for tests. Every frame carries its number as twelve black or white tiles, which survive any codec."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

COLUMNS, ROWS = 4, 3  # tiles of the twelve bits, the lowest one at the top left


def numbered_picture(number: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8."""
    bits = [(number >> bit) & 1 for bit in range(COLUMNS * ROWS)]
    tiles = np.array(bits, np.uint8).reshape(ROWS, COLUMNS) * 200 + 28
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(tiles[np.ix_(rows, columns)][..., None], 3, axis=2)


def read_number(picture_3HW: np.ndarray) -> int:
    """The number in a picture that was squashed, not cropped."""
    _, height, width = picture_3HW.shape
    rows = (np.arange(ROWS) * 2 + 1) * height // (2 * ROWS)
    columns = (np.arange(COLUMNS) * 2 + 1) * width // (2 * COLUMNS)
    bits = picture_3HW.mean(0)[np.ix_(rows, columns)].ravel() > 128
    return int((bits << np.arange(len(bits))).sum())


def render(
    path: Path,
    num_frames: int = 60,
    *,
    fps: int = 10,
    height: int = 48,
    width: int = 64,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 2,
    times: list[int] | None = None,
    container_options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Encode numbered frames. times: the frames' times in ticks of 1/1000 s, in place of a fixed rate."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        context = stream.codec_context
        context.gop_size, context.max_b_frames = gop, b_frames
        defaults = {"preset": "ultrafast", "bf": str(b_frames), "sc_threshold": "0"} if codec == "libx264" else {}
        context.options = defaults
        if times:
            context.time_base = Fraction(1, 1000)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, height, width), format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rotate(path: Path, degrees: int, tag: bytes | None = None) -> None:
    """Write a rotation into an mp4's display matrix, as a phone does, or any 36 bytes."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    data = path.read_bytes()
    place = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:place] + (tag or turned) + data[place + len(turned) :])

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
    options: dict[str, str] | None = None,
    first: int = 0,
    sound_s: tuple[float, float] | None = None,
) -> Path:
    """Encode numbered frames.

    Args:
        times: the frames' times in ticks of 1/1000 s, in place of a fixed rate.
        options: of the encoder.
        first: number of the first frame.
        sound_s: a second stream, of silence, from one time to another one.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        context = stream.codec_context
        context.gop_size, context.max_b_frames = gop, b_frames
        defaults = {"preset": "ultrafast", "bf": str(b_frames), "sc_threshold": "0"} if codec == "libx264" else {}
        context.options = defaults | (options or {})
        if times:
            context.time_base = Fraction(1, 1000)
        sound = _Silence(container, *sound_s) if sound_s else None
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(first + number, height, width), format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
            if sound:
                sound.go_on_to(frame.time)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            sound.end()
    return path


class _Silence:
    """A sound track that is written beside the pictures."""

    def __init__(self, container: av.container.OutputContainer, begin_s: float, end_s: float):
        codec = {"webm": "libopus", "flv": "mp3", "avi": "mp3", "mpg": "mp2"}
        name = codec.get(container.name.rpartition(".")[2], "aac")
        self._rate = 48000 if name == "libopus" else 44100
        self._stream = container.add_stream(name, rate=self._rate, layout="mono")
        self._container, self._place, self._end_s = container, round(begin_s * self._rate), end_s

    def go_on_to(self, time_s: float) -> None:
        """Write the sound up to a time."""
        while self._place < min(time_s, self._end_s) * self._rate:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._place, Fraction(1, self._rate)
            self._container.mux(self._stream.encode(frame))
            self._place += 4410

    def end(self) -> None:
        """Write the rest."""
        self.go_on_to(self._end_s)
        self._container.mux(self._stream.encode(None))


def sequential(path: Path) -> list[tuple[float, int]]:
    """Seconds on the container's clock and number of every frame, decoded by PyAV from the first to the last one."""
    with av.open(str(path)) as container:
        return [(frame.time, read_number(frame.to_ndarray(format="rgb24").transpose(2, 0, 1)))
                for frame in container.decode(video=0)]  # fmt: skip


def flag_every_sample(path: Path) -> Path:
    """Make an mp4 say that each of its samples is a keyframe, by taking away the table of those that are."""
    data = path.read_bytes()
    assert data.count(b"stss") == 1
    path.write_bytes(data.replace(b"stss", b"free"))
    return path


def rotate(path: Path, degrees: int, tag: bytes | None = None) -> None:
    """Write a rotation into an mp4's display matrix, as a phone does, or any 36 bytes."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    data = path.read_bytes()
    place = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:place] + (tag or turned) + data[place + len(turned) :])

"""A decoded picture made into an encoder's input: upright, square pixels, resized and cropped as open_clip does it.

Normalisation is left to the encoder, which does it on its own device. Only PIL and numpy are imported, which
keeps the decoder's child process small.

Shapes: H and W pixels.
"""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from prvr_ray.video.errors import VideoError

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
RESIZE_MODES = ("shortest", "longest", "squash")


@dataclass(frozen=True)
class FrameSpec:
    """How an encoder wants its frames: the fields of open_clip's preprocess configuration that shape pixels.

    image_size: height and width in pixels. resize_mode: `shortest` side fitted, then centre crop; `longest` side
    fitted, then padded with fill_color; or `squash`.
    """

    image_size: tuple[int, int]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill_color: int = 0

    def __post_init__(self) -> None:
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode={self.resize_mode!r}; use one of {', '.join(RESIZE_MODES)}")
        if self.interpolation not in _FILTERS:
            raise ValueError(f"interpolation={self.interpolation!r}; use one of {', '.join(_FILTERS)}")

    @property
    def num_bytes(self) -> int:
        """Of one frame."""
        return 3 * self.image_size[0] * self.image_size[1]


class FrameConverter:
    """Turns the decoded frames of one file into pictures. The colour converter is reused between frames."""

    def __init__(self, sample_aspect_ratio: Fraction | None, max_pixels: int):
        self._reformatter = VideoReformatter()
        self._aspect = sample_aspect_ratio or Fraction(1)
        self._max_pixels = max_pixels

    def picture(self, frame: av.VideoFrame) -> Image.Image:
        """The frame as a player shows it: RGB, square pixels, upright.

        Raises:
            VideoError: too_large, more than max_pixels.
        """
        width = max(1, round(frame.width * self._aspect))
        check_pixels(max(width, frame.width), frame.height, self._max_pixels)
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1).planes[0]
        size = frame.width, frame.height
        picture = Image.frombuffer("RGB", size, memoryview(rgb), "raw", "RGB", rgb.line_size, 1)  # type: ignore[arg-type]
        if width != frame.width:
            picture = picture.resize((width, frame.height), Image.Resampling.BICUBIC)
        turn = _TURNS.get(frame.rotation)
        return picture if turn is None else picture.transpose(turn)

    def fit(self, picture: Image.Image, spec: FrameSpec) -> np.ndarray:
        """Resize and crop a picture to an encoder's input.

        Returns:
            (3, H, W) uint8, what open_clip's evaluation transform gives before its normalisation.

        Raises:
            VideoError: too_large, a picture so elongated that resizing it exceeds max_pixels.
        """
        width, height = _resized(picture.size, spec)
        check_pixels(width, height, self._max_pixels)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), _filter(spec))
        return np.asarray(_crop_or_pad(picture, spec)).transpose(2, 0, 1)


# PyAV reports the angle counter-clockwise, and nonsense for a damaged matrix; any other angle is ignored.
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    -90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
}


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture that would not fit in memory.

    Raises:
        VideoError: too_large.
    """
    if width * height > max_pixels:
        raise VideoError("too_large", f"a picture of {width}x{height} pixels; ingest.max_pixels is {max_pixels}")


def _filter(spec: FrameSpec) -> Image.Resampling:
    """open_clip 3.3 ignores the interpolation when it fits the shortest side to an input that is not square."""
    height, width = spec.image_size
    return _FILTERS["bicubic" if spec.resize_mode == "shortest" and height != width else spec.interpolation]


def _resized(size: tuple[int, int], spec: FrameSpec) -> tuple[int, int]:
    """Width and height after resizing and before cropping; torchvision truncates, open_clip's own resize rounds."""
    width, height = size
    target_height, target_width = spec.image_size
    if spec.resize_mode == "squash":
        return target_width, target_height
    if spec.resize_mode == "shortest" and target_width == target_height:
        if width <= height:
            return target_width, int(target_width * height / width)
        return int(target_width * width / height), target_width
    ratios = height / target_height, width / target_width
    ratio = max(ratios) if spec.resize_mode == "longest" else min(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _crop_or_pad(picture: Image.Image, spec: FrameSpec) -> Image.Image:
    height, width = spec.image_size
    if picture.width < width or picture.height < height:
        canvas = Image.new("RGB", (max(width, picture.width), max(height, picture.height)), (spec.fill_color,) * 3)
        canvas.paste(picture, ((canvas.width - picture.width) // 2, (canvas.height - picture.height) // 2))
        picture = canvas
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))
